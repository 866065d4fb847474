"""The tables of limit rules and of what soft limits had to say."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deepseek_gateway.limits.rules import Kind, LimitRule
from deepseek_gateway.storage.database import Database, Row, Transaction

_COLUMNS = "id, kind, amount, org_id, team_id, user_id, key_id, model, time_zone, soft, on_failure, created"
_EVENT_COLUMNS = (
    "rule_id, counter, since, kind, amount, taken, org_id, team_id, user_id, key_id, model, request_id, created"
)
_EVENT_MARKS = ", ".join(f":{name.strip()}" for name in _EVENT_COLUMNS.split(","))


@dataclass(frozen=True, slots=True)
class LimitEvent:
    """A soft limit that was reached: once a window, or once a minute. Field names are the columns."""

    rule_id: str
    counter: str
    since: float
    kind: str
    amount: int
    taken: int
    org_id: str | None
    team_id: str | None
    user_id: str | None
    key_id: str | None
    model: str | None
    request_id: str
    created: float


@dataclass(frozen=True, slots=True)
class RuleTable:
    """Limit rules, and their version."""

    database: Database

    def version(self) -> tuple[int, int]:
        """How often the rules, and the credits of balances, were changed."""
        rows = dict(self.database.read("SELECT name, version FROM limit_versions"))
        return int(rows["rules"]), int(rows["balances"])

    def insert(self, rule: LimitRule) -> None:
        """Keep a rule; one with the same id is replaced."""
        values = {**asdict(rule), "kind": rule.kind.value, "amount": rule.limit, "soft": int(rule.soft)}
        with self.database.transaction() as transaction:
            transaction.write("DELETE FROM limit_rules WHERE id = :id", values)
            transaction.write(
                f"INSERT INTO limit_rules ({_COLUMNS}) VALUES (:id, :kind, :amount, :org_id, :team_id, :user_id, "  # noqa: S608
                ":key_id, :model, :time_zone, :soft, :on_failure, :created)",
                values,
            )
            bump(transaction, "rules")

    def find(self, rule_id: str) -> LimitRule | None:
        """One rule."""
        rows = self.database.read(f"SELECT {_COLUMNS} FROM limit_rules WHERE id = :id", {"id": rule_id})  # noqa: S608
        return _rule(rows[0]) if rows else None

    def all(self) -> list[LimitRule]:
        """All rules, the oldest first."""
        rows = self.database.read(f"SELECT {_COLUMNS} FROM limit_rules ORDER BY created, id")  # noqa: S608
        return [_rule(row) for row in rows]

    def delete(self, rule_id: str) -> bool:
        """Forget a rule; gives whether it was there."""
        with self.database.transaction() as transaction:
            changed = transaction.write("DELETE FROM limit_rules WHERE id = :id", {"id": rule_id})
            if changed:
                bump(transaction, "rules")
        return bool(changed)

    def insert_events(self, events: Sequence[LimitEvent]) -> None:
        """Keep events; of the same counter and window the first stands, whichever gateway saw it."""
        with self.database.transaction() as transaction:
            transaction.write_many(
                f"INSERT INTO limit_events ({_EVENT_COLUMNS}) VALUES ({_EVENT_MARKS}) "  # noqa: S608
                "ON CONFLICT (counter, since) DO NOTHING",
                [asdict(event) for event in events],
            )

    def events(self, limit: int = 100, since: float = 0.0) -> list[LimitEvent]:
        """The newest events, the newest first."""
        rows = self.database.read(
            f"SELECT {_EVENT_COLUMNS} FROM limit_events WHERE created >= :since "  # noqa: S608
            "ORDER BY created DESC LIMIT :limit",
            {"since": since, "limit": limit},
        )
        return [LimitEvent(*row) for row in rows]


def bump(transaction: Transaction, name: str) -> int:
    """Count a change; gives the new version."""
    rows = transaction.read(
        "UPDATE limit_versions SET version = version + 1 WHERE name = :name RETURNING version", {"name": name}
    )
    return int(rows[0][0])


def _rule(row: Row) -> LimitRule:
    rule_id, kind, amount, org_id, team_id, user_id, key_id, model, time_zone, soft, on_failure, created = row
    policy: Any = on_failure
    return LimitRule(
        id=rule_id,
        kind=Kind(kind),
        limit=int(amount),
        org_id=org_id,
        team_id=team_id,
        user_id=user_id,
        key_id=key_id,
        model=model,
        time_zone=time_zone,
        soft=bool(soft),
        on_failure=policy,
        created=created,
    )
