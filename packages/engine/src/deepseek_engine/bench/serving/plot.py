"""A picture of a measurement as SVG: latencies by time of arrival, their distribution, and requests under way.

Written here, in plain text, rather than with a plotting library: three panels of dots and lines do not earn a
dependency many times the size of this package, and a browser shows the file as it is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from deepseek_engine.bench.serving.record import Record
from deepseek_engine.bench.serving.summary import percentile

Point = tuple[float, float]

_WIDTH: Final = 860
_PANEL: Final = 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 34, 38
_COLORS: Final = {"ttft": "#1f77b4", "tpot": "#2ca02c", "e2e": "#9467bd", "failed": "#d62728", "running": "#555555"}
_NUM_TICKS: Final = 5
_NUM_STEPS: Final = 200
"""Points of a distribution's line: more is not seen."""


class _Panel:
    """One diagram with axes from 0: data units in, SVG elements out."""

    def __init__(self, number: int, title: str, x_label: str, x_max: float, y_max: float) -> None:
        self._top = number * _PANEL + _TOP
        self._height = _PANEL - _TOP - _BOTTOM
        self._x_max = x_max or 1.0
        self._y_max = y_max or 1.0
        self.elements = [
            _text(_LEFT, self._top - 12, title, weight="bold"),
            _text((_LEFT + _WIDTH - _RIGHT) / 2, self._top + self._height + 32, x_label, anchor="middle"),
        ]
        for tick in range(_NUM_TICKS + 1):
            self._ticks(self._x_max * tick / _NUM_TICKS, self._y_max * tick / _NUM_TICKS)

    def _at(self, point: Point) -> Point:
        x = _LEFT + point[0] / self._x_max * (_WIDTH - _LEFT - _RIGHT)
        return x, self._top + self._height * (1 - min(point[1] / self._y_max, 1.0))

    def _ticks(self, x_value: float, y_value: float) -> None:
        x, y = self._at((x_value, y_value))
        line = f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>'
        low = self._top + self._height
        self.elements += [
            line,
            _text(_LEFT - 6, y + 4, f"{y_value:.4g}", anchor="end"),
            _text(x, low + 16, f"{x_value:.4g}", anchor="middle"),
        ]

    def dots(self, points: Sequence[Point], name: str) -> None:
        """A dot for each point."""
        for x, y in map(self._at, points):
            self.elements.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{_COLORS[name]}" fill-opacity="0.6"/>')

    def line(self, points: Sequence[Point], name: str) -> None:
        """A line through the points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self._at, points))
        self.elements.append(f'<polyline points="{path}" fill="none" stroke="{_COLORS[name]}" stroke-width="1.5"/>')

    def legend(self, names: Sequence[str]) -> None:
        """Which color is what."""
        x = _WIDTH - _RIGHT - 90 * len(names)
        for name in names:
            dot = f'<circle cx="{x}" cy="{self._top - 16}" r="4" fill="{_COLORS[name]}"/>'
            self.elements += [dot, _text(x + 8, self._top - 12, name)]
            x += 90


def draw(records: Sequence[Record], title: str) -> str:
    """The whole picture."""
    whole = [record for record in records if record.is_whole]
    failed = [record for record in records if not record.is_whole]
    end_s = max((record.end_s or record.due_s for record in records), default=1.0)
    panels = (_arrivals(whole, failed, end_s), _distributions(whole), _under_way(records, end_s))
    height = _PANEL * len(panels) + 24
    body = "\n".join(element for panel in panels for element in panel.elements)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n'
        f"{_text(_LEFT, height - 8, title)}\n</svg>\n"
    )


def write_plot(path: Path, records: Sequence[Record], title: str) -> None:
    """Draw into a file.

    Raises:
        OSError: it cannot be written.
    """
    path.write_text(draw(records, title), encoding="utf-8")


def _arrivals(whole: Sequence[Record], failed: Sequence[Record], end_s: float) -> _Panel:
    most = max((record.e2e_ms for record in whole), default=1.0)
    panel = _Panel(0, "latency of each request, ms", "due, s", end_s, most)
    panel.dots([(record.due_s, record.e2e_ms) for record in whole], "e2e")
    panel.dots([(record.due_s, record.ttft_ms) for record in whole], "ttft")
    panel.dots([(record.due_s, 0.0) for record in failed], "failed")
    panel.legend(("ttft", "e2e", "failed"))
    return panel


def _distributions(whole: Sequence[Record]) -> _Panel:
    ttft = sorted(record.ttft_ms for record in whole)
    tpot = sorted(record.tpot_ms for record in whole if record.tpot_ms is not None)
    most = max([1.0, *(percentile(values, 99) for values in (ttft, tpot))])
    panel = _Panel(1, "share of requests, %, up to the 99th percentile", "ms", most, 100.0)
    for name, values in (("ttft", ttft), ("tpot", tpot)):
        steps = [(percentile(values, 100 * step / _NUM_STEPS), 100 * step / _NUM_STEPS) for step in range(_NUM_STEPS)]
        panel.line([point for point in steps if point[0] <= most] if values else [], name)
    panel.legend(("ttft", "tpot"))
    return panel


def _under_way(records: Sequence[Record], end_s: float) -> _Panel:
    changes = sorted([(record.due_s, 1) for record in records] + [(record.end_s or end_s, -1) for record in records])
    points, count = [(0.0, 0.0)], 0
    for at_s, change in changes:
        points += [(at_s, float(count)), (at_s, float(count + change))]
        count += change
    panel = _Panel(2, "requests under way", "s", end_s, max(point[1] for point in points))
    panel.line(points, "running")
    return panel


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escaped}</text>'
