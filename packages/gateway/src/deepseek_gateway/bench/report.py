"""The figures as a table for people, and as one line of JSON."""

import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from deepseek_gateway.bench.measures import Plan, Results
from deepseek_gateway.bench.targets import Target

PACKAGES = ("deepseek-gateway", "uvicorn", "httptools", "uvloop", "orjson")


def tables(plan: Plan, results: Results, targets: Sequence[Target]) -> str:
    """All figures, one column a target; medians of the rounds, with the lowest and the highest."""
    names = [target.name for target in targets]
    rows: list[list[str]] = [["", *names]]

    def row(title: str, figure: str, digits: int = 1, *, skip_direct: bool = False) -> None:
        cells = [_cell(results, name, figure, digits, hide=skip_direct and name == "direct") for name in names]
        rows.append([title, *cells])

    row("CPU of one piece of work, p99 / p50", "machine_p99_over_p50", 1)
    for rate in plan.rates:
        row(f"latency at {rate:g}/s, p50, ms", f"rate_{rate:g}_p50_ms", 2)
        row(f"latency at {rate:g}/s, p99, ms", f"rate_{rate:g}_p99_ms", 2)
        row(f"added latency at {rate:g}/s, p50, ms", f"rate_{rate:g}_added_p50_ms", 2, skip_direct=True)
        row(f"added latency at {rate:g}/s, p99, ms", f"rate_{rate:g}_added_p99_ms", 2, skip_direct=True)
    for callers in plan.callers:
        row(f"requests/s, {callers} at once", f"callers_{callers}_rps", 0)
        row(f"CPU us/request, {callers} at once", f"callers_{callers}_cpu_us", 0, skip_direct=True)
    row(f"CPU us/chunk, {plan.paced_streams} paced streams", "paced_cpu_us_per_chunk", 1, skip_direct=True)
    row("chunks/s of these", "paced_chunks_per_s", 0)
    row(f"chunks/s, {plan.burst_streams} streams at full speed", "burst_chunks_per_s", 0)
    row("CPU us/chunk of these", "burst_cpu_us_per_chunk", 1, skip_direct=True)
    row("added time to first token, p50, ms", "ttft_added_p50_ms", 2, skip_direct=True)
    row("added time to first token, p99, ms", "ttft_added_p99_ms", 2, skip_direct=True)
    row(f"open streams of {plan.held_streams}", "held_streams", 0)
    row("KiB of memory an open stream", "held_kib_per_stream", 0, skip_direct=True)
    row("start to first answer, s", "start_s", 2, skip_direct=True)
    row("memory idle, MiB", "rss_idle_mib", 1, skip_direct=True)
    row("memory after all that, MiB", "rss_after_mib", 1, skip_direct=True)
    for number in plan.keys:
        row(f"CPU us/request, 10 of {number} keys in turn", f"keys_{number}_cpu_us", 0, skip_direct=True)
        row(f"CPU us of a key's first request, {number} keys", f"keys_{number}_first_cpu_us", 0, skip_direct=True)
        row(f"start to first answer with {number} keys, s", f"keys_{number}_start_s", 2, skip_direct=True)
        row(f"memory with {number} keys, MiB", f"keys_{number}_rss_mib", 0, skip_direct=True)
    kept = [cells for cells in rows if any(cell != "-" for cell in cells[1:])]
    widths = [max(len(cells[at]) for cells in kept) for at in range(len(names) + 1)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) for cells in kept]
    return "\n".join(line.rstrip() for line in lines)


def add_differences(plan: Plan, results: Results) -> None:
    """Added latencies: a target's percentile less the direct mean of the same round."""
    direct = results.rounds["direct"]
    for name, figures in list(results.rounds.items()):
        for kind in (*(f"rate_{rate:g}" for rate in plan.rates), "ttft"):
            for percent in ("p50", "p99"):
                values = figures.get(f"{kind}_{percent}_ms", [])
                added = [value - mean for value, mean in zip(values, direct.get(f"{kind}_mean_ms", []), strict=False)]
                if added and name != "direct":
                    figures[f"{kind}_added_{percent}_ms"] = added


def as_json(plan: Plan, results: Results, versions: dict[str, str]) -> dict[str, Any]:
    """Everything, for programs."""
    figures = {
        target: {
            name: {"median": _round(statistics.median(values)), "min": _round(min(values)), "max": _round(max(values))}
            for name, values in by_name.items()
        }
        for target, by_name in results.rounds.items()
    }
    return {
        "benchmark": "gateway",
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": machine(),
        "versions": versions,
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "targets": figures,
        "faults": results.faults,
    }


def machine() -> dict[str, object]:
    """What this ran on."""
    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "kernel": platform.release(), "load": os.getloadavg()[0]}


def versions() -> dict[str, str]:
    """Of Python and of what the gateway runs on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "source"
    return found


def _cell(results: Results, target: str, figure: str, digits: int, *, hide: bool) -> str:
    values = results.rounds.get(target, {}).get(figure)
    if not values or hide:
        return "-"
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def _round(value: float) -> float:
    return float(f"{value:.4g}")
