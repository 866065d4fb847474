"""One engine while the gateway runs: whether it is up, how busy it is, which models it serves."""

import logging
import math
from dataclasses import dataclass, field

from deepseek_gateway.config.sections import UpstreamKind
from deepseek_gateway.policy.snapshot import UpstreamPlan
from deepseek_gateway.route.breaker import Breaker, Health
from deepseek_gateway.route.load import STALE_S, LoadReport, load_of
from deepseek_gateway.route.rendezvous import hash32
from deepseek_gateway.upstream.client import UpstreamClient

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Upstream:
    """State of one engine. It counts as up until something says otherwise; times are monotonic.

    Attributes:
        models: its own model names: configured, else what it lists.
        is_leaving: a reload has removed it: it closes with its last request.
        has_tokenizer: it may have /tokenize: nobody saw yet that it has not.
    """

    plan: UpstreamPlan
    client: UpstreamClient
    breaker: Breaker
    models: tuple[str, ...] = ()
    in_flight: int = 0
    at_model: dict[str, int] = field(default_factory=dict[str, int])
    report: LoadReport | None = None
    is_leaving: bool = False
    has_tokenizer: bool = True
    seed: int = 0
    capacity: float = math.inf
    model_capacity: dict[str, int] = field(default_factory=dict[str, int])

    @classmethod
    def connect(cls, plan: UpstreamPlan) -> "Upstream":
        """A new one. Call it inside the event loop."""
        section = plan.section
        breaker = Breaker(plan.max_backoff_s, plan.max_failures)
        client = UpstreamClient(section.address, plan.key, plan.connect_timeout_s, plan.tls)
        return cls(
            plan,
            client,
            breaker,
            models=section.models,
            seed=hash32(section.name.encode()),
            capacity=section.capacity or math.inf,
            model_capacity=section.model_capacity,
        )

    @property
    def name(self) -> str:
        """What logs, metrics and the ledger call it."""
        return self.plan.section.name

    @property
    def kind(self) -> UpstreamKind:
        """What it is."""
        return self.plan.section.kind

    @property
    def health(self) -> Health:
        """What its breaker says."""
        return self.breaker.health

    @property
    def is_up(self) -> bool:
        """Whether it takes traffic."""
        return self.breaker.is_up

    @property
    def learns_models(self) -> bool:
        """Whether its own list of models counts."""
        return not self.plan.section.models

    def has_room(self, model: str | None) -> bool:
        """Whether one more request for a model of its own is within its capacities."""
        if self.in_flight >= self.capacity:
            return False
        if not self.model_capacity or model is None:
            return True
        most = self.model_capacity.get(model)
        return most is None or self.at_model.get(model, 0) < most

    def load(self, now_s: float) -> float:
        """How busy it is."""
        return load_of(self.in_flight, self.report, now_s)

    def fresh_waiting(self, now_s: float) -> float | None:
        """Requests that wait there, as it said not long ago; None when that is not known."""
        report = self.report
        return None if report is None or now_s - report.at_s > STALE_S else report.waiting

    def begin(self, model: str | None) -> bool:
        """Count a request that goes to it; True if it is the one that tries whether it is back."""
        self.in_flight += 1
        if model is not None and self.model_capacity:
            self.at_model[model] = self.at_model.get(model, 0) + 1
        return self.breaker.begin()

    def end(self, model: str | None) -> None:
        """Count a request that is over."""
        self.in_flight -= 1
        if model in self.at_model:
            self.at_model[model] -= 1
