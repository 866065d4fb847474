"""Bar charts of this engine and vLLM from lines of JSON, with the floors of the device: needs `pip install matplotlib`.

    python packages/engine/benchmarks/plot_offline.py ours.jsonl vllm.jsonl --output docs/images/offline.svg

The last line of each variant counts. The same lines give the same bytes.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from offline_lines import Line, read_lines

_OURS, _THEIRS, _FLOOR = "#3b6fd4", "#9aa3ad", "#c0392b"


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart: a figure of a workload, and whether less of it is better."""

    workload: str
    figure: str
    title: str


PANELS: Final = (
    Panel("W1", "tpot_ms", "One request: ms a token (less is better)"),
    Panel("W2", "out_tok_s", "32 requests: output tokens/s"),
    Panel("W3", "out_tok_s", "512 requests: output tokens/s"),
    Panel("W4", "prompt_tok_s", "Prompts of 4096: prompt tokens/s"),
)


def limit(panel: Panel, line: Line) -> float | None:
    """What the device allows at best, in the panel's unit; rates are known for lines of ours only."""
    if panel.figure == "tpot_ms":
        return line.weight_floor_ms
    share, value = line.figure(panel.workload, "share_of_floor"), line.figure(panel.workload, panel.figure)
    # The share of W2 is one of its decode steps, which is not its rate over the whole call.
    return value / share if panel.workload != "W2" and share and value else None


def draw(lines: Sequence[Line], output: Path, title: str) -> None:
    """Write the chart."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update(
        {"svg.hashsalt": "offline", "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"}
    )
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(3.1 * len(PANELS), 0.9 + 0.34 * len(lines)), sharey=True)
    for panel, axis in zip(PANELS, axes, strict=True):
        _draw_panel(axis, panel, lines)
    axes[0].invert_yaxis()  # of all: the first line is at the top
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.tight_layout()
    figure.savefig(output, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def _draw_panel(axis: Any, panel: Panel, lines: Sequence[Line]) -> None:
    values = [line.figure(panel.workload, panel.figure) or 0.0 for line in lines]
    axis.barh(range(len(lines)), values, color=[_OURS if line.is_ours else _THEIRS for line in lines], height=0.62)
    for row, (line, value) in enumerate(zip(lines, values, strict=True)):
        number = "not measured" if not value else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
        axis.text(value, row, f" {number}", va="center", fontsize=8)
        best = limit(panel, line)
        if best is not None:
            axis.plot([best, best], [row - 0.4, row + 0.4], color=_FLOOR, linewidth=1.5)
    axis.set_yticks(range(len(lines)), [line.label for line in lines])
    axis.set_title(panel.title, fontsize=9, loc="left")
    axis.margins(x=0.18)
    locator, formatter = _ticks()
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(formatter)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _ticks() -> tuple[Any, Any]:
    """Few, and in thousands where they are thousands."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    return MaxNLocator(4), FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")


def main() -> int:
    """Read the files and write the chart."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="lines of JSON of either engine")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.svg")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only specs that begin so, as seed-3.4b and m1")
    parser.add_argument("--copy-gb-s", type=float, help="what the device copies, for floors of vLLM's lines")
    parser.add_argument("--title", default="Bars: measured. Red: what the device allows at best.")
    options = parser.parse_args()
    lines = [line for path in options.files for line in read_lines(path, options.copy_gb_s)]
    wanted = options.models or [line.model for line in lines]
    last = {line.label: line for line in lines if line.model in wanted}
    if not last:
        print("no lines to draw", file=sys.stderr)
        return 1
    try:
        draw(sorted(last.values(), key=lambda line: (not line.is_ours, line.label)), options.output, options.title)
    except ModuleNotFoundError as error:
        print(f"this needs {error.name}: pip install matplotlib", file=sys.stderr)
        return 1
    print(f"{options.output}: {options.output.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
