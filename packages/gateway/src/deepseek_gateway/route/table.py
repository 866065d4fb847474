"""Which upstreams serve a model: by alias, by rename, by what they list; without those that a request may not use."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from deepseek_gateway.config.sections import ModelSection, UpstreamKind
from deepseek_gateway.policy.snapshot import Snapshot, UpstreamPlan


class Server(Protocol):
    """An upstream, as far as the table looks."""

    plan: UpstreamPlan
    models: tuple[str, ...]
    seed: int

    @property
    def kind(self) -> UpstreamKind:
        """What it is."""
        ...


ServerType = TypeVar("ServerType", bound=Server)


class Needs(NamedTuple):
    """What a request asks of an upstream beside the model.

    `allow_cloud`: its prompt may leave for DeepSeek's cloud. `own_engine`: it is of a dialect that only our engine has.
    """

    allow_cloud: bool = False
    own_engine: bool = False

    def admits(self, kind: UpstreamKind) -> bool:
        """Whether an upstream of a kind will do."""
        if kind == "engine":
            return True
        return not self.own_engine and (kind != "deepseek-cloud" or self.allow_cloud)


ANY = Needs(allow_cloud=True)


@dataclass(frozen=True, slots=True)
class Target(Generic[ServerType]):
    """One upstream that serves a route; `model` is its own name for the model, None when nobody knows one."""

    upstream: ServerType
    model: str | None
    weight: float
    seed: int


@dataclass(frozen=True, slots=True)
class Route(Generic[ServerType]):
    """All upstreams for a model, in tiers: a tier takes what the ones before it cannot."""

    name: str
    tiers: tuple[tuple[Target[ServerType], ...], ...]

    @property
    def has_choice(self) -> bool:
        """Whether a tier has several."""
        return any(len(tier) > 1 for tier in self.tiers)

    @property
    def is_empty(self) -> bool:
        """Whether there is none."""
        return not self.tiers

    @property
    def renames(self) -> bool:
        """Whether an answer may carry another name than the caller's."""
        return any(target.model not in {None, self.name} for tier in self.tiers for target in tier)


class RouteTable(Generic[ServerType]):
    """The routes of one snapshot over these upstreams. Make a new one when either, or a list of models, changes."""

    def __init__(self, snapshot: Snapshot, upstreams: Sequence[ServerType]) -> None:
        self._models = snapshot.models
        self._upstreams = upstreams
        self._known: dict[tuple[str | None, Needs], Route[ServerType]] = {}

    def route(self, model: str | None, needs: Needs) -> Route[ServerType]:
        """The route of a model name; empty when nobody may serve it."""
        known = self._known.get((model, needs))
        if known is None:
            if len(self._known) >= 4096:
                self._known.clear()
            known = self._known[model, needs] = self._find(model, needs)
        return known

    def names(self) -> list[str]:
        """All names that callers can use: aliases, then names that upstreams give themselves, ours first."""
        names = list(self._models)
        for upstream in sorted(self._upstreams, key=lambda one: one.kind == "deepseek-cloud"):
            names += [*upstream.plan.section.renames, *upstream.models]
        return list(dict.fromkeys(names))

    def _find(self, model: str | None, needs: Needs) -> Route[ServerType]:
        name = model or ""
        base, colon, adapter = name.rpartition(":")
        if (alias := self._models.get(name)) is not None:
            return _by_tier(name, self._of_alias(alias, ""), needs)
        if colon and (alias := self._models.get(base)) is not None:
            return _by_tier(name, self._of_alias(alias, f":{adapter}"), needs)
        found = self._listing(name, "")
        if not found and colon:
            # Adapters come and go between two looks at an engine's list: one may be where its base model is.
            found = self._listing(base, f":{adapter}")
        if not found:
            # Nobody is known to serve it: whoever does not say what it serves might, or can say that there is none.
            ours = [one for one in self._upstreams if one.kind != "deepseek-cloud" and not one.plan.section.models]
            found = [(0, _target(one, model)) for one in ours]
        return _by_tier(name, found, needs)

    def _of_alias(self, alias: ModelSection, suffix: str) -> list[tuple[int, Target[ServerType]]]:
        found: list[tuple[int, Target[ServerType]]] = []
        for target in alias.targets:
            for upstream in self._upstreams:
                section = upstream.plan.section
                if section.name == target.upstream or target.tag in section.tags:
                    name = section.renames.get(target.model or alias.name, target.model or alias.name)
                    found.append((target.tier, _target(upstream, name + suffix, target.weight)))
        return found

    def _listing(self, name: str, suffix: str) -> list[tuple[int, Target[ServerType]]]:
        """Who lists a name. The cloud comes last: prompts leave only when nobody here can take them."""
        found: list[tuple[int, Target[ServerType]]] = []
        for upstream in self._upstreams:
            section = upstream.plan.section
            own = section.renames.get(name, name if name in upstream.models else None)
            if own is not None:
                tier = int(upstream.kind == "deepseek-cloud")
                found.append((tier, _target(upstream, own + suffix)))
        return found


def _target(upstream: ServerType, model: str | None, weight: float = 1.0) -> Target[ServerType]:
    return Target(upstream, model, weight * upstream.plan.section.weight, upstream.seed)


def _by_tier(name: str, found: Iterable[tuple[int, Target[ServerType]]], needs: Needs) -> Route[ServerType]:
    tiers: dict[int, list[Target[ServerType]]] = {}
    for tier, target in found:
        if needs.admits(target.upstream.kind):
            tiers.setdefault(tier, []).append(target)
    return Route(name, tuple(tuple(tiers[tier]) for tier in sorted(tiers)))
