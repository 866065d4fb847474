"""What is kept of one request. Times are seconds since the start of the measurement."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Record:
    """One request of the load.

    Attributes:
        index: its place in the order of arrival.
        due_s: when it was to be sent; every latency counts from here, so that a late sender hides nothing.
        sent_s: when it was sent.
        token_s: when each event with new text came.
        end_s: when its answer was complete.
        prompt_tokens: as the server's usage says; None if it says nothing.
        output_tokens: the same; without usage, the events with text.
        is_counted: whether `output_tokens` is the server's own count.
        failure: what kind of failure it was; None if the answer is whole.
        detail: the failure's first words.
    """

    index: int
    due_s: float
    sent_s: float | None = None
    token_s: list[float] = field(default_factory=list[float])
    end_s: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int = 0
    is_counted: bool = False
    failure: str | None = None
    detail: str = ""

    @property
    def ttft_ms(self) -> float:
        """Time to first token."""
        return 1000 * (self.token_s[0] - self.due_s)

    @property
    def tpot_ms(self) -> float | None:
        """Time per output token after the first; None for an answer of one token."""
        if self.output_tokens < 2:
            return None
        return 1000 * (self.token_s[-1] - self.token_s[0]) / (self.output_tokens - 1)

    @property
    def itl_ms(self) -> list[float]:
        """Gaps between events with text: an event of several tokens is one gap, as a reader sees it."""
        return [1000 * (later - sooner) for sooner, later in zip(self.token_s, self.token_s[1:], strict=False)]

    @property
    def e2e_ms(self) -> float:
        """From due to complete."""
        assert self.end_s is not None, "only of whole answers"
        return 1000 * (self.end_s - self.due_s)

    @property
    def is_whole(self) -> bool:
        """Whether the answer came completely."""
        return self.failure is None

    def fail(self, kind: str, detail: object = "") -> None:
        """Note the first failure; later ones follow from it."""
        if self.failure is None:
            self.failure, self.detail = kind, str(detail)[:200]
