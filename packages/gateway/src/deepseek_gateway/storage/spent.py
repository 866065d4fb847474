"""What a scope used in a window: from the sums of hours where they are made, from the rows where these are newer.

A budget of a month would else read each of its rows, a million where a gateway has much to do.
"""

from collections.abc import Sequence
from dataclasses import asdict

from deepseek_gateway.limits.rules import Scope, Unit
from deepseek_gateway.storage.database import Database
from deepseek_gateway.storage.whole_hours import FRESH, OF_FRESH, OF_LATE, OF_SUMS, hours
from deepseek_gateway.usage.zones import HOUR_S

_USED = {"money": "cost_nano", "tokens": "prompt_tokens + completion_tokens"}
_OWNERS = ("user", "team", "org")
"""The narrowest first: it has the fewest keys."""


def spent(database: Database, scope: Scope, unit: Unit, start: float, end: float) -> int:
    """Tokens, or money in nano-units, of the requests of a scope that were admitted in [start, end)."""
    first, last = -int(-start // HOUR_S), int(end // HOUR_S)
    used, own, by_keys = _USED[unit], _conditions(scope), _conditions_by_keys(scope)
    if first >= last:
        parts = [_sum(used, "ledger u", ["u.created >= :start", "u.created < :end", *by_keys])]
    else:
        is_of_keys = any((scope.key_id, scope.team_id, scope.user_id))
        sums, conditions = ("usage_key_hours u", by_keys) if is_of_keys else ("usage_hours u", own)
        parts = [
            _sum(used, sums, [*OF_SUMS, *conditions]),
            _sum(used, FRESH, [*OF_FRESH, *by_keys]),
            _sum(used, "ledger u", [*OF_LATE, *by_keys]),
        ]
        if start < first * HOUR_S:
            parts.append(_sum(used, "ledger u", ["u.created >= :start", "u.created < :first_s", *by_keys]))
        if end > last * HOUR_S:
            parts.append(_sum(used, "ledger u", ["u.created >= :last_s", "u.created < :end", *by_keys]))
    values = {"start": start, "end": end, **hours(first, last), **_values(scope)}
    # One statement, so that it sees sums, marks and rows of one moment.
    sql = f"SELECT coalesce(sum(part), 0) FROM ({' UNION ALL '.join(parts)}) AS parts"  # noqa: S608  fixed texts
    # An owner or a model may have many rows to add up, and no look-up of a key waits for that.
    read = database.read if scope.key_id is not None else database.report
    return int(read(sql, values)[0][0])


def _sum(used: str, source: str, conditions: Sequence[str]) -> str:
    return f"SELECT sum({used}) AS part FROM {source} WHERE {' AND '.join(conditions)}"  # noqa: S608  fixed texts


def _conditions(scope: Scope) -> list[str]:
    owners = (name for name, value in asdict(scope).items() if value is not None and name != "model")
    conditions = [f"u.{name} = :{name}" for name in owners]
    if scope.model is not None and scope.model.endswith("*"):
        conditions += ["substr(u.model, 1, :length) = :model", "u.model <> ''"]
    elif scope.model is not None:
        conditions.append("u.model = :model")
    return conditions


def _conditions_by_keys(scope: Scope) -> list[str]:
    """Conditions that begin with the keys, by which rows are found."""
    if scope.key_id is None and _owner(scope) is not None:
        return ["u.key_id IN (SELECT key_id FROM ledger_owners WHERE owner = :owner)", *_conditions(scope)]
    return _conditions(scope)


def _owner(scope: Scope) -> str | None:
    """The narrowest owner, as `ledger_owners` names it."""
    given = asdict(scope)
    return next((f"{kind}:{given[f'{kind}_id']}" for kind in _OWNERS if given[f"{kind}_id"] is not None), None)


def _values(scope: Scope) -> dict[str, object]:
    values: dict[str, object] = {**asdict(scope), "owner": _owner(scope)}
    if scope.model is not None and scope.model.endswith("*"):
        values |= {"model": scope.model[:-1], "length": len(scope.model) - 1}
    return values
