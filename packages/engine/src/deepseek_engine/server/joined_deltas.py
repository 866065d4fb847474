"""Deltas that waited together, as if one step had brought them.

A server that lags, or a caller who reads slowly, makes deltas wait. Joined, they cost one event instead of many, so
that the server catches up; nothing ever waits in order to be joined.
"""

from collections.abc import Sequence

import msgspec

from deepseek_engine.messages import Delta


def join_deltas(deltas: Sequence[Delta]) -> Sequence[Delta]:
    """The deltas of one request, those of each answer joined into one, in the order in which the answers came first.

    What is read off a prompt stays apart, and in its place: the answers to a prompt share it.
    """
    if len(deltas) == 1:
        return deltas
    joined: list[Delta | None] = []
    runs: dict[int, tuple[int, list[Delta]]] = {}
    for delta in deltas:
        if delta.prompt_logprobs or delta.embedding is not None:
            _close(joined, runs)
            joined.append(delta)
        elif delta.index in runs:
            runs[delta.index][1].append(delta)
        else:
            runs[delta.index] = (len(joined), [delta])
            joined.append(None)
    _close(joined, runs)
    return [delta for delta in joined if delta is not None]


def _close(joined: list[Delta | None], runs: dict[int, tuple[int, list[Delta]]]) -> None:
    for place, run in runs.values():
        joined[place] = _join(run)
    runs.clear()


def _join(run: list[Delta]) -> Delta:
    """One answer's. Only its last delta says how it ended; counts are of all so far, and the last is of the most."""
    if len(run) == 1:
        return run[0]
    logprobs = tuple([entry for delta in run for entry in delta.logprobs or ()])
    furthest = max(run, key=lambda delta: delta.num_prompt_tokens)
    return msgspec.structs.replace(
        run[-1],
        token_ids=tuple([token_id for delta in run for token_id in delta.token_ids]),
        logprobs=logprobs or None,
        num_prompt_tokens=furthest.num_prompt_tokens,
        num_cached_tokens=furthest.num_cached_tokens,
    )
