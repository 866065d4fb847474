"""A runner that computes nothing, for what a step costs beside the model: at once, or as slowly as a device would.

`build_idle_runner` is for core processes: `AsyncEngine.start(config, runner="idle_runner:build_idle_runner")`, with
this folder on PYTHONPATH.
"""

import time
from collections.abc import Sequence as Seq
from urllib.parse import parse_qsl

from deepseek_engine.config import EngineConfig
from deepseek_engine.messages import TokenLogprobs, TopLogprob
from deepseek_engine.prompt_reading import PromptPart
from deepseek_engine.runner_protocol import AdapterHost, RunnerInfo
from deepseek_engine.sequence import SampledToken, ScheduledSequence


class IdleStep:
    """Implements the Launched protocol: it is done at its time."""

    def __init__(self, tokens: list[SampledToken], done_s: float) -> None:
        self._tokens = tokens
        self.done_s = done_s

    def wait(self) -> list[SampledToken]:
        """What was sampled."""
        if (left_s := self.done_s - time.perf_counter()) > 0:
            time.sleep(left_s)
        return self._tokens


class IdleLauncher:
    """Implements the Launcher protocol, as one for a device: a step begins when the one before is done."""

    penalises_on_host = False

    def __init__(self, runner: "IdleRunner", step_s: float = 0.0) -> None:
        self._runner = runner
        self._step_s = step_s
        self._free_s = 0.0

    def launch(self, batch: Seq[ScheduledSequence], previous: IdleStep | None) -> IdleStep:
        """Nothing to do but to say which token it will be, and when."""
        del previous
        if self._step_s:
            self._free_s = max(self._free_s, time.perf_counter()) + self._step_s
        return IdleStep(self._runner.sample(None, batch), self._free_s)


class IdleRunner:
    """Implements the Runner protocol and computes nothing.

    Args:
        info: the sizes to pretend to.
        token_ids: what it says, over and over; each sequence begins at another place.
    """

    def __init__(self, info: RunnerInfo, token_ids: Seq[int] = (7,)) -> None:
        self.info = info
        self.adapters: AdapterHost | None = None
        self.launcher: IdleLauncher | None = None
        self.failure: str | None = None
        self._token_ids = token_ids
        self._num_said = 0
        self._entry = TokenLogprobs(-0.5, tuple(TopLogprob(token_id, -1.0 - token_id) for token_id in range(5)))
        self._plain = [SampledToken(token_id) for token_id in token_ids]

    def forward(self, batch: Seq[ScheduledSequence]) -> None:
        """Nothing to do."""

    def read_prompts(self, batch: Seq[ScheduledSequence]) -> list[PromptPart]:
        """Nothing was asked for."""
        raise AssertionError(batch)

    def sample(self, logits: None, batch: Seq[ScheduledSequence]) -> list[SampledToken]:
        """A token for each row."""
        del logits
        said, plain = self._num_said, self._plain
        self._num_said = said + 1
        num = len(plain)
        return [
            plain[(said + row) % num]
            if s.sequence.params.logprobs is None
            else SampledToken(self._token_ids[(said + row) % num], self._entry)
            for row, s in enumerate(batch)
            for _ in range(s.num_sampled_rows)
        ]

    def free_caches(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """There is nothing to end."""


def build_idle_runner(config: EngineConfig) -> IdleRunner:
    """A runner in a core process; `config.model` is `idle?step_s=0.009&vocab_size=49152&token_ids=12,7`."""
    options = dict(parse_qsl(config.model.partition("?")[2]))
    info = RunnerInfo(
        max_model_len=config.max_model_len or 8192,
        vocab_size=int(options["vocab_size"]),
        num_blocks=config.num_kv_blocks or 1024,
        block_size=config.block_size,
        dtype="float32",
        device="cpu",
        weight_bytes=0,
        kv_cache_bytes=0,
    )
    runner = IdleRunner(info, tuple(map(int, options["token_ids"].split(","))))
    runner.launcher = IdleLauncher(runner, float(options["step_s"]))
    return runner
