"""This engine and vLLM in turns on one GPU, in fresh processes, on the same workloads; ends in a Markdown table.

    python packages/engine/benchmarks/compare_vllm.py OUT --site SITE --scripts SCRIPTS \
        --ours bfloat16 float32+int8 --vllm bf16 --shape seed-3.4b --budget 560

SITE is a folder that vLLM was unpacked to. SCRIPTS has `bench_vllm.py MODEL:VARIANT OUT.jsonl`, which times vLLM on W1
to W4 and appends a line of JSON, and `ceilings.py OUT.json`. Every variant runs once untimed, which fills the caches of
compilers, then in turns as often as `--rounds` says. A process is started only while `--need` seconds of the budget are
left, and stopped where it ends; what was measured until then is in the table.
"""

import argparse
import datetime as dt
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Final

from offline_lines import Line, read_lines

VLLM_MODELS: Final = {"seed-3.4b": "m1", "v2-lite": "m2"}
_GRACE_S: Final = 5


class Turns:
    """Runs processes one after another within a budget of seconds."""

    def __init__(self, out: Path, budget_s: float, need_s: float) -> None:
        self._out, self._end, self._need_s = out, time.monotonic() + budget_s, need_s

    @property
    def left_s(self) -> float:
        """Of the budget."""
        return self._end - time.monotonic()

    def run(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Run a command to its end or the budget's; its output goes to `log.txt`."""
        if self.left_s < self._need_s:
            print(f"skipped {name}: {self.left_s:.0f} s left", flush=True)
            return
        started = time.monotonic()
        with (self._out / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"=== {name}: {shlex.join(command)}\n")
            log.flush()
            # A session of its own, so that an engine's own processes end with it.
            process = subprocess.Popen(  # noqa: S603 - what the caller named
                command, env={**os.environ, **(environment or {})}, stdout=log, stderr=log, start_new_session=True
            )
            try:
                status = f"status {process.wait(max(self.left_s - _GRACE_S, 1))}"
            except subprocess.TimeoutExpired:
                status = "stopped at the end of the budget"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        print(f"{name}: {status}, {time.monotonic() - started:.0f} s", flush=True)


def our_command(shape: str, variant: str, output: Path, flags: Sequence[str]) -> list[str]:
    """`float32+int8` is float32 with INT8 weights."""
    dtype, _, quantization = variant.partition("+")
    command = [sys.executable, "-m", "deepseek_engine.bench.cli", "offline", "--shape", shape, "--device", "cuda"]
    command += ["--dtype", dtype, *(["--quantization", quantization] if quantization else [])]
    return [*command, "--output", str(output), *flags]


def table(lines: Sequence[Line]) -> str:
    """A Markdown table, a row for each process."""
    head = (
        "variant", "W1 TTFT ms", "W1 TPOT ms", "of floor", "W2 TTFT ms", "W2 TPOT ms", "W2 out tok/s", "W3 out tok/s",
        "W3 total tok/s", "util mean/median", "power W", "W4 prompt tok/s", "import s", "ready s",
    )  # fmt: skip
    rows = [head, ("---",) * len(head), *map(_row, lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(line: Line) -> tuple[str, ...]:
    tpot, floor = line.figure("W1", "tpot_ms"), line.weight_floor_ms
    busy = [_shown(line.figure("W3", name)) for name in ("util_mean", "util_median")]
    return (
        line.label,
        _shown(line.figure("W1", "ttft_ms")),
        _shown(tpot, 3),
        f"{floor / tpot:.0%} of {floor:.3f}" if floor and tpot else "",
        _shown(line.figure("W2", "ttft_ms")),
        _shown(line.figure("W2", "tpot_ms"), 3),
        _shown(line.figure("W2", "out_tok_s"), 0),
        _shown(line.figure("W3", "out_tok_s"), 0),
        _shown(line.figure("W3", "total_tok_s"), 0),
        " / ".join(busy) if all(busy) else "",
        _shown(line.figure("W3", "power_w_median"), 0),
        _shown(line.figure("W4", "prompt_tok_s"), 0),
        *(_shown(line.fields.get(name)) for name in ("import_s", "ready_s")),
    )


def _shown(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _report(out: Path, copy_gb_s: float | None) -> str:
    """What was run, on what, and the table."""
    lines = [line for file in _measured(out) for line in read_lines(file, copy_gb_s)]
    fields = "name,driver_version,memory.total,power.limit"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.strip()  # noqa: S603 - fixed
    except (OSError, subprocess.SubprocessError):
        gpu = "no nvidia-smi"
    torch_version = next((line.fields["torch"] for line in lines if line.is_ours), "unknown")
    today = dt.datetime.now(tz=dt.UTC).date()
    return "\n".join(
        [
            f"{today}; {gpu}; torch {torch_version}; a copy reaches {copy_gb_s or 'an unmeasured number of'} GB/s",
            "",
            table(lines),
            "",
            f"    {shlex.join(['python', *sys.argv])}",
            "",
        ]
    )


def _measured(out: Path) -> list[Path]:
    """The files of timed runs that there are."""
    return [out / name for name in ("vllm.jsonl", "ours.jsonl") if (out / name).is_file()]


def _vllm(turns: Turns, options: argparse.Namespace, variant: str, output: Path, what: str) -> None:
    spec = f"{VLLM_MODELS[options.shape]}:{variant}"
    environment = {"PYTHONPATH": str(options.site), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(options.scripts / "bench_vllm.py"), spec, str(output)]
    turns.run(f"{what}vLLM {variant}", command, environment)
    part = output.with_name(f"{output.name}.part")  # where it was stopped
    if part.exists():
        with output.open("a", encoding="utf-8") as file:
            file.write(part.read_text(encoding="utf-8"))
        part.unlink()


def main() -> int:
    """Run all of it; returns 1 if nothing was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder for lines of JSON, logs and the table")
    parser.add_argument("--site", type=Path, required=True, help="folder that vLLM is importable from")
    parser.add_argument("--scripts", type=Path, required=True, help="folder of bench_vllm.py and ceilings.py")
    parser.add_argument("--shape", default="seed-3.4b", choices=list(VLLM_MODELS))
    parser.add_argument("--ours", nargs="*", default=["bfloat16"], metavar="DTYPE[+int8]")
    parser.add_argument("--vllm", nargs="*", default=["bf16"], metavar="VARIANT[:tuned]")
    parser.add_argument("--ours-flags", type=shlex.split, default=[], metavar="FLAGS", help="more, of deepseek-bench")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--budget", type=float, default=560.0, metavar="SECONDS", help="of everything")
    parser.add_argument("--need", type=float, default=75.0, metavar="SECONDS", help="left to start a process")
    parser.add_argument("--no-warm-up", action="store_true", help="the caches were filled by a run before")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    turns = Turns(options.out, options.budget, options.need)
    ceilings = options.out / "ceilings.json"
    turns.run("ceilings", [sys.executable, str(options.scripts / "ceilings.py"), str(ceilings)])
    copy_gb_s = json.loads(ceilings.read_text())["copy_GBps_read_plus_written"] if ceilings.exists() else None
    pairs = list(zip_longest(options.ours, options.vllm))
    rounds = [*([] if options.no_warm_up else [("warm-up of ", "warm-up-")]), *[("", "")] * options.rounds]
    for what, prefix in rounds:
        for ours, theirs in pairs:
            if ours is not None:
                flags = [*options.ours_flags, *(["--repeats", "1"] if prefix else [])]
                command = our_command(options.shape, ours, options.out / f"{prefix}ours.jsonl", flags)
                turns.run(f"{what}ours {ours}", command)
            if theirs is not None:
                _vllm(turns, options, theirs, options.out / f"{prefix}vllm.jsonl", what)
    report = _report(options.out, copy_gb_s)
    (options.out / "table.md").write_text(report, encoding="utf-8")
    print(report)
    return 0 if _measured(options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
