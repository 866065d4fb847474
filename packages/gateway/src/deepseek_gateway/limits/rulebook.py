"""All rules of one moment, and which of them concern a request. Immutable: a change is a new book."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deepseek_gateway.limits.rules import EACH, Kind, LimitRule, Limits, Scope, Subject, Unit

ALL = "*"
"""The tag of counters that organisations share."""

MAX_PLANS = 20_000
"""Remembered subjects; more than callers at a time. When it is full, all are forgotten."""


@dataclass(frozen=True, slots=True)
class Meter:
    """A rule as it counts for one subject.

    Attributes:
        counter: the name of what is counted; requests with the same one share the limit.
        scope: which requests share it; its ledger rows rebuild a budget.
        tag: the organisation, or what else keeps the counter; counters of one tag live together.
    """

    rule: LimitRule
    counter: str
    scope: Scope
    tag: str
    kind: Kind
    unit: Unit
    limit: int
    is_soft: bool

    @property
    def is_held(self) -> bool:
        """Whether running requests hold something of it: soft limits count only what was used."""
        return not self.is_soft or self.unit == "requests"


@dataclass(frozen=True, slots=True)
class Plan:
    """Every meter of a request, and the smallest limits among those that can refuse; None where there is none."""

    meters: tuple[Meter, ...]
    tag: str
    tightest_tokens: int | None
    tightest_nano: int | None


class Rulebook:
    """Rules and prepaid credits, indexed.

    Args:
        rules: those of the store.
        credits: prepaid money of each account, in nano-units; an account that is not there is not prepaid.
    """

    def __init__(self, rules: Iterable[LimitRule] = (), credits: Mapping[str, int] | None = None) -> None:  # noqa: A002
        self._index: dict[tuple[str, str], list[LimitRule]] = defaultdict(list)
        for rule in rules:
            self._index[_index_of(rule)].append(rule)
        self._credits = credits or {}
        self._plans: dict[tuple[Subject, Limits], Plan] = {}

    def plan(self, subject: Subject, limits: Limits) -> Plan:
        """The meters of a request by a key with these limits of its own."""
        plan = self._plans.get((subject, limits))
        if plan is None:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            plan = self._plans[subject, limits] = self._make(subject, limits)
        return plan

    def _make(self, subject: Subject, limits: Limits) -> Plan:
        rules = [*_short_form(subject.key_id, limits), *self._matching(subject)]
        if (credit := self._credits.get(subject.account)) is not None:
            key_id = subject.key_id if subject.org_id is None else None
            name = f"balance:{subject.account}"
            rules.append(LimitRule(name, Kind.BALANCE, credit, org_id=subject.org_id, key_id=key_id))
        tag = subject.org_id if subject.org_id is not None else f"key:{subject.key_id}"
        meters = tuple(_meter(rule, subject, tag) for rule in rules)
        hard = [meter for meter in meters if not meter.is_soft]
        tokens = [meter.limit for meter in hard if meter.unit == "tokens"]
        nano = [meter.limit for meter in hard if meter.unit == "money"]
        return Plan(meters, tag, min(tokens, default=None), min(nano, default=None))

    def _matching(self, subject: Subject) -> list[LimitRule]:
        places = [
            ("key", subject.key_id),
            ("user", subject.user_id),
            ("team", subject.team_id),
            ("org", subject.org_id),
            ("model", subject.model),
            ("any", ""),
        ]
        found: list[LimitRule] = []
        for field, value in places:
            if value is not None:
                found += [rule for rule in self._index.get((field, value), ()) if rule.matches(subject)]
        return found


def _index_of(rule: LimitRule) -> tuple[str, str]:
    """Where a rule is looked for: under the narrowest subject that it names exactly."""
    for field in ("key", "user", "team", "org"):
        value: str | None = getattr(rule, f"{field}_id")
        if value is not None and value != EACH:
            return field, value
    if rule.model is not None and not rule.model.endswith("*"):
        return "model", rule.model
    return "any", ""


def _short_form(key_id: str, limits: Limits) -> list[LimitRule]:
    return [
        LimitRule(f"key:{key_id}:{name}", Kind(name), value, key_id=key_id)
        for name, value in limits.to_json().items()
        if value is not None
    ]


def _meter(rule: LimitRule, subject: Subject, tag: str) -> Meter:
    pairs = (
        (rule.org_id, subject.org_id),
        (rule.team_id, subject.team_id),
        (rule.user_id, subject.user_id),
        (rule.key_id, subject.key_id),
        (rule.model, subject.model),
    )
    what = [] if rule.id.startswith(("key:", "balance:")) else [rule.counted]  # those say it themselves
    each = [value for named, value in pairs if named == EACH and value is not None]
    counter = "\x1f".join([rule.id, *what, *each])
    is_of_all = all(named is None for named, _ in pairs[:4])
    return Meter(
        rule, counter, rule.scope(subject), ALL if is_of_all else tag, rule.kind, rule.kind.unit, rule.limit, rule.soft
    )
