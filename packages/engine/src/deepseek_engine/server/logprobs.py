"""Log-probabilities in the two forms of the wire."""

from collections.abc import Sequence
from typing import Any, Final

from deepseek_engine.messages import TokenLogprobs
from deepseek_engine.tokenizer import Tokenizer

_LOWEST: Final = -9999.0
"""JSON has no -inf; the same stand-in that vLLM and OpenAI use."""


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[tuple[int, TokenLogprobs]]) -> list[dict[str, Any]]:
    """The chat form: one object a token, with its bytes, as a token alone is not always text."""
    return [
        {
            **_chat_token(tokenizer, token_id, entry.logprob),
            "top_logprobs": [_chat_token(tokenizer, top.token_id, top.logprob) for top in entry.top],
        }
        for token_id, entry in entries
    ]


class LegacyLogprobs:
    """The completions form: parallel lists. One instance an answer, as `text_offset` counts from its beginning."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = tokenizer.text_stream()
        self._offset = 0

    def next(self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None]) -> dict[str, Any]:
        """The lists of the next tokens; nothing predicts an echoed prompt's first one, so that its entry is None."""
        offsets: list[int] = []
        for token_id in token_ids:
            offsets.append(self._offset)
            self._offset += len(self._stream.push(token_id))
        names = [_legacy_name(self._tokenizer, token_id) for token_id in token_ids]
        return {
            "tokens": names,
            "token_logprobs": [None if entry is None else _finite(entry.logprob) for entry in entries],
            "top_logprobs": [
                None if entry is None else self._candidates(name, entry)
                for name, entry in zip(names, entries, strict=True)
            ],
            "text_offset": offsets,
        }

    def _candidates(self, name: str, entry: TokenLogprobs) -> dict[str, float]:
        top = {_legacy_name(self._tokenizer, top.token_id): _finite(top.logprob) for top in entry.top}
        return {**top, name: _finite(entry.logprob)}


def join_legacy(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The lists of several steps as one."""
    keys = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {key: [item for part in parts for item in part[key]] for key in keys}


def prompt_candidates(
    tokenizer: Tokenizer, token_ids: Sequence[int], entries: Sequence[TokenLogprobs]
) -> list[dict[str, Any] | None]:
    """VLLM's `prompt_logprobs`: for each prompt token but the first, candidates by their token id."""
    found: list[dict[str, Any] | None] = [None]
    for token_id, entry in zip(token_ids[1:], entries, strict=True):
        candidates: list[tuple[int, float, int | None]] = [
            (top.token_id, top.logprob, rank) for rank, top in enumerate(entry.top, start=1)
        ]
        if all(candidate[0] != token_id for candidate in candidates):
            candidates.append((token_id, entry.logprob, None))
        found.append(
            {
                str(other): {"logprob": _finite(logprob), "rank": rank, "decoded_token": tokenizer.token_text(other)}
                for other, logprob, rank in candidates
            }
        )
    return found


def _chat_token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token_id)
    return {"token": raw.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(raw)}


def _legacy_name(tokenizer: Tokenizer, token_id: int) -> str:
    r"""The token's text, or OpenAI's spelling `bytes:\xe4\xbd` where it has none: names are keys and must differ."""
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(logprob: float) -> float:
    return logprob if logprob > _LOWEST else _LOWEST
