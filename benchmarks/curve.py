"""The curve over streams as a picture, from the JSON of benchmarks.scale.

    .venv/bin/python -m benchmarks.scale --json FILE && .venv/bin/python -m benchmarks.curve FILE… IMAGE.svg

Two panels over the number of streams: readings/s that one worker drains, and how much of a core it uses
while nothing comes. A line for each layout; the bars are the spread of the rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

WIDTH, HEIGHT = 720, 620
LEFT, RIGHT, TOP, GAP, BOTTOM = 80, 40, 40, 70, 90
STYLES = {
    "all streams active": ("#1f6feb", ""),
    "1 % of them active": ("#d1242f", "6 4"),
    "as many devices in 64 shards": ("#1a7f37", "2 3"),
}
PANELS = (("readings/s, one worker", ""), ("% of a core while nothing comes", ": idle worker"))
_CASE = re.compile(r"^([\d,]+) (streams, (?P<active>\d+) % active|devices in \d+ shards)$")


class Point(NamedTuple):
    streams: int
    median: float
    low: float
    high: float


def lines(figures: dict[str, Any], suffix: str) -> dict[str, list[Point]]:
    """The points of each line, in the order of their streams."""
    found: dict[str, list[Point]] = {style: [] for style in STYLES}
    for name, figure in figures.items():
        case = _CASE.match(name.removesuffix(suffix)) if name.endswith(suffix) else None
        if not case:
            continue
        style = "as many devices in 64 shards"
        if case["active"]:
            style = "all streams active" if case["active"] == "100" else "1 % of them active"
        streams = int(case[1].replace(",", ""))
        found[style].append(Point(streams, figure["median"], figure["low"], figure["high"]))
    return {style: sorted(points) for style, points in found.items() if points}


def nice(top: float) -> float:
    """The first round number from `top` on, for the end of an axis."""
    unit = 10.0 ** math.floor(math.log10(top)) if top > 0 else 1.0
    return next(step * unit for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * unit >= top)


class Panel:
    """One panel: where numbers lie in the picture."""

    def __init__(self, top: float, height: float, found: dict[str, list[Point]]) -> None:
        self._top, self._height = top, height
        self._found = found
        points = [point for line in found.values() for point in line]
        streams = [point.streams for point in points]
        self._first, self._last = math.log10(min(streams)), math.log10(max(streams))
        self.most = nice(max(point.high for point in points))
        self.ticks = sorted(set(streams))

    def x(self, streams: int) -> float:
        span = (self._last - self._first) or 1.0
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(streams) - self._first) / span

    def y(self, value: float) -> float:
        return self._top + self._height * (1 - value / self.most)

    def draw(self, title: str) -> Iterator[str]:
        yield f'<text x="{LEFT}" y="{self._top - 12}" font-weight="bold">{title}</text>'
        for step in range(5):
            value = self.most * step / 4
            y = self.y(value)
            yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#d0d7de"/>'
            yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:,.6g}</text>'
        for streams in self.ticks:
            x, y = self.x(streams), self._top + self._height + 18
            yield f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{streams:,}</text>'
        for style, line in self._found.items():
            yield from self._line(style, line)

    def _line(self, style: str, line: Sequence[Point]) -> Iterator[str]:
        colour, dashes = STYLES[style]
        path = " ".join(f"{self.x(point.streams):.1f},{self.y(point.median):.1f}" for point in line)
        yield (
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{dashes}"/>'
        )
        for point in line:
            x = self.x(point.streams)
            yield (
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{self.y(point.low):.1f}" '
                f'y2="{self.y(point.high):.1f}" stroke="{colour}"/>'
            )
            yield f'<circle cx="{x:.1f}" cy="{self.y(point.median):.1f}" r="3.5" fill="{colour}"/>'


def picture(figures: dict[str, Any]) -> str:
    """The SVG. Raises: `ValueError` where the figures hold no case of `benchmarks.scale`."""
    height = (HEIGHT - TOP - GAP - BOTTOM) / 2
    looks = 'font-family="sans-serif" font-size="12" fill="#1f2328"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {looks}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for number, (title, suffix) in enumerate(PANELS):
        found = lines(figures, suffix)
        if not found:
            raise ValueError("no figures of benchmarks.scale are in it")
        parts += Panel(TOP + number * (height + GAP), height, found).draw(title)
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 48}" text-anchor="middle">streams, or devices</text>')
    for number, (style, (colour, dashes)) in enumerate(STYLES.items()):
        x = LEFT + number * 190
        parts.append(
            f'<line x1="{x}" x2="{x + 30}" y1="{HEIGHT - 20}" y2="{HEIGHT - 20}" stroke="{colour}" '
            f'stroke-width="2" stroke-dasharray="{dashes}"/>'
        )
        parts.append(f'<text x="{x + 36}" y="{HEIGHT - 16}">{style}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("figures", type=Path, nargs="+", help="what benchmarks.scale --json wrote")
    parser.add_argument("image", type=Path, help="the SVG to write")
    chosen = parser.parse_args(arguments)
    figures: dict[str, Any] = {}
    for file in chosen.figures:
        try:
            figures |= json.loads(file.read_text(encoding="utf-8"))["figures"]
        except (OSError, ValueError, KeyError) as error:
            raise SystemExit(f"benchmark: {file} cannot be drawn: {error}") from None
    try:
        drawn = picture(figures)
    except ValueError as error:
        raise SystemExit(f"benchmark: {file} cannot be drawn: {error}") from None
    chosen.image.parent.mkdir(parents=True, exist_ok=True)
    chosen.image.write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
