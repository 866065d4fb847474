"""The tokens around a model's reasoning, for a budget to count between them."""

from collections.abc import Callable, Sequence

from deepseek_engine.messages import ThinkingMarkers
from deepseek_engine.text_parsers.markup import ReasoningMarkup

TokenId = Callable[[str], int | None]
"""The id of the one token that is written so, if there is one."""


def find_markers(token_id: TokenId, markup: ReasoningMarkup, *, is_open: bool) -> ThinkingMarkers | None:
    """The markers, or None if the tags are no tokens of their own.

    Written with ordinary tokens, a tag merges with the text beside it in more ways than one, and a budget that missed
    the end would cut into the answer.

    Args:
        token_id: the model's vocabulary.
        markup: its tags.
        is_open: whether the prompt ends inside reasoning.
    """
    open_id, close_id = token_id(markup.open), token_id(markup.close)
    if open_id is None or close_id is None:
        return None
    return ThinkingMarkers((close_id,), () if is_open else (open_id,), is_open)


def markers_of_prompt(token_id: TokenId, markup: ReasoningMarkup, prompt: Sequence[int]) -> ThinkingMarkers | None:
    """As `find_markers`; the last tag in the prompt's token ids tells whether it ends inside reasoning."""
    found = find_markers(token_id, markup, is_open=False)
    if found is None:
        return None
    tags = {*found.start_token_ids, *found.end_token_ids}
    last = next((index for index in reversed(prompt) if index in tags), None)
    return find_markers(token_id, markup, is_open=last in found.start_token_ids)
