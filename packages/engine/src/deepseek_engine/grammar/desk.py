"""GrammarDesk: requests that wait for their grammar, and the masks of those that have one."""

from collections.abc import Iterable, Iterator

from deepseek_engine.errors import GrammarError, InvalidRequestError
from deepseek_engine.grammar.protocol import Grammar
from deepseek_engine.grammar.state import SequenceGrammar
from deepseek_engine.grammar.store import INSTALL_HINT, GrammarStore
from deepseek_engine.messages import Submit
from deepseek_engine.request import Request
from deepseek_engine.sequence import ScheduledSequence


class GrammarDesk:
    """The engine's part of structured output.

    Args:
        store: compiles; None where nobody set one up, and requests with a grammar are refused.
    """

    def __init__(self, store: GrammarStore | None) -> None:
        self._store = store
        self._waiting: dict[str, tuple[Request, Submit]] = {}

    @property
    def num_waiting(self) -> int:
        """Requests whose grammar is being compiled."""
        return len(self._waiting)

    @property
    def has_ready(self) -> bool:
        """Whether a request need not wait any longer."""
        return any(self._is_ready(submit) for _, submit in self._waiting.values())

    def receive(self, request: Request, submit: Submit) -> bool:
        """Give the request's answers their grammar; False if they have to wait for it.

        Raises:
            GrammarError: the grammar cannot be compiled.
            InvalidRequestError: this engine or this model cannot follow grammars.
        """
        if submit.grammar is None:
            return True
        if self._store is None:
            raise InvalidRequestError(f"structured output is not set up here: {INSTALL_HINT}", param="grammar")
        if not submit.eos_token_ids:
            raise InvalidRequestError("structured output needs a model with an end token", param="grammar")
        grammar = self._store.get(submit.grammar.source)
        if grammar is not None:
            _bind(request, submit, grammar)
            return True
        self._waiting[submit.request_id] = (request, submit)
        return False

    def take_ready(self) -> Iterator[tuple[Request, Submit, GrammarError | None]]:
        """Requests whose grammar is there now, or cannot be: those with an error are to be ended."""
        for request_id in [i for i, (_, submit) in self._waiting.items() if self._is_ready(submit)]:
            request, submit = self._waiting.pop(request_id)
            if not request.num_unfinished:
                continue  # cancelled meanwhile
            assert self._store is not None
            assert submit.grammar is not None
            try:
                grammar = self._store.get(submit.grammar.source)
            except GrammarError as error:
                yield request, submit, error
                continue
            assert grammar is not None
            _bind(request, submit, grammar)
            yield request, submit, None

    def fill_masks(self, batch: Iterable[ScheduledSequence]) -> None:
        """Prepare the masks of the tokens that this step samples; to be called while `forward` may still run."""
        for scheduled in batch:
            sequence = scheduled.sequence
            if sequence.grammar is not None and scheduled.needs_token:
                may_stop = sequence.num_output_tokens >= sequence.params.min_tokens
                sequence.token_mask = sequence.grammar.next_mask(may_stop=may_stop)

    def _is_ready(self, submit: Submit) -> bool:
        assert self._store is not None
        assert submit.grammar is not None
        return self._store.is_ready(submit.grammar.source)


def _bind(request: Request, submit: Submit, grammar: Grammar) -> None:
    assert submit.grammar is not None
    for sequence in request.sequences:
        sequence.grammar = SequenceGrammar(grammar, submit.grammar, submit.eos_token_ids, sequence.stop_token_ids)
