"""SVG as text: the few elements that a dashboard needs, its colours and its letters. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from dashboard_values import Colour

PAGE, PANEL, EDGE, GRID = "#111217", "#181b1f", "#2b2e36", "#2a2d34"
TEXT, FAINT, STRONG = "#ccccdc", "#8e919e", "#ffffff"
PALETTE: Final = (
    "#73bf69", "#5794f2", "#ff9830", "#b877d9", "#f2cc0c", "#56d3e0", "#f2495c", "#8ab8ff", "#c8f2c2", "#ffcb7d",
    "#d683ce", "#9aa5ce",
)  # fmt: skip
_COLOURS: Final = {
    Colour.GOOD: "#56a64b",
    Colour.NOTICE: "#f2cc0c",
    Colour.WARNING: "#ff9830",
    Colour.BAD: "#f2495c",
    Colour.WORST: "#c4162a",
    Colour.CALM: "#5794f2",
    Colour.SOON: "#8ab8ff",
    Colour.LEAVING: "#b877d9",
    Colour.AWAY: "#7a8291",
}
HEAT: Final = ("#2b1a10", "#5a2d10", "#8f3d0b", "#c4560a", "#ee7b1b", "#ffa24d", "#ffc98f", "#fff0dc")
FONT: Final = "Inter, 'Segoe UI', Roboto, 'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"
# Shares of the size of the letters, of a wide face like DejaVu Sans.
_WIDE, _NARROW, _USUAL, _CAPITAL = "mwMW@%", "ijlt.,:;'|!()[]I fr", 0.6, "ABCDEFGHJKLNOPQRSTUVXYZ"


@dataclass(frozen=True, slots=True)
class Box:
    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    def inside(self, left: float, top: float, right: float, bottom: float) -> Box:
        return Box(self.x + left, self.y + top, self.width - left - right, self.height - top - bottom)


def shade(colour: Colour) -> str:
    return _COLOURS[colour]


def width_of(text: str, size: float) -> float:
    shares = (0.95 if one in _WIDE else 0.36 if one in _NARROW else 0.68 if one in _CAPITAL else _USUAL for one in text)
    return size * sum(shares)


def fitting(text: str, size: float, room: float) -> str:
    """The text, or as much of its beginning as there is room for."""
    if width_of(text, size) <= room:
        return text
    while text and width_of(text + "…", size) > room:
        text = text[:-1]
    return text.rstrip() + "…" if text else ""


def text(
    x: float, y: float, words: str, *, size: float = 11, fill: str = TEXT, anchor: str = "start", bold: bool = False
) -> str:
    more = f' text-anchor="{anchor}"' if anchor != "start" else ""
    more += ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{fill}"{more}>{escape(words)}</text>'


def rect(box: Box, fill: str, *, edge: str = "", round_px: float = 0, opacity: float = 1) -> str:
    more = f' stroke="{edge}"' if edge else ""
    more += f' rx="{round_px:g}"' if round_px else ""
    more += f' fill-opacity="{opacity:g}"' if opacity < 1 else ""
    return f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{max(box.width, 0):.1f}" height="{max(box.height, 0):.1f}" fill="{fill}"{more}/>'


def line(
    x1: float, y1: float, x2: float, y2: float, stroke: str, *, width: float = 1, dashes: str = "", opacity: float = 1
) -> str:
    more = f' stroke-dasharray="{dashes}"' if dashes else ""
    more += f' stroke-opacity="{opacity:g}"' if opacity < 1 else ""
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{stroke}" stroke-width="{width:g}"{more}/>'


def path(points: Sequence[tuple[float, float]], stroke: str, *, width: float = 1.4) -> str:
    return f'<path d="{_way(points)}" fill="none" stroke="{stroke}" stroke-width="{width:g}" stroke-linejoin="round"/>'


def area(upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]], fill: str, opacity: float) -> str:
    return f'<path d="{_way([*upper, *reversed(lower)])}Z" fill="{fill}" fill-opacity="{opacity:g}"/>'


def dot(x: float, y: float, radius: float, fill: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{fill}"/>'


def _way(points: Sequence[tuple[float, float]]) -> str:
    """Points on a straight line between two others are left out."""
    kept: list[tuple[float, float]] = []
    for point in points:
        if len(kept) > 1 and abs(kept[-1][1] - kept[-2][1]) < 0.05 and abs(point[1] - kept[-1][1]) < 0.05:
            kept[-1] = point
        else:
            kept.append(point)
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in kept)


def page(width: float, height: float, title: str, elements: Iterable[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
        f' font-family="{FONT}" role="img"><title>{escape(title)}</title>'
    )
    return "\n".join([head, rect(Box(0, 0, width, height), PAGE), *elements, "</svg>"]) + "\n"
