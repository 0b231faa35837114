"""Draw docs/layers.svg from the imports: ``python tests/draw_layers.py``.

Each box is a file of the core's root, a folder, or a folder of ``train`` without stages; it stands one row above the highest
that it imports. A line is drawn where no longer way leads down to the same box.
"""

from __future__ import annotations

from functools import cache
from xml.sax.saxutils import escape

from imports import ROOT, folders

PICTURE = ROOT / "docs" / "layers.svg"
WIDTH, ROW, BOX, MARGIN = 1180, 76, 26, 24  # pixels
LETTER = 7.4  # width of one
SPINE = ["types", "media", "face", "compose", "codec", "models", "flow", "poses", "retrieval", "editing", "steps", "pipeline"]


@cache
def level(name: str) -> int:
    """0 for what imports nothing of the core."""
    return max((level(below) + 1 for below in folders()[name]), default=0)


@cache
def everything_below(name: str) -> frozenset[str]:
    return frozenset(folders()[name]).union(*(everything_below(below) for below in folders()[name]))


def direct(name: str) -> list[str]:
    """The imports that no other import already stands above."""
    below = folders()[name]
    return sorted(b for b in below if not any(b in everything_below(other) for other in below))


def rows() -> list[list[str]]:
    """Names by level, each row ordered by where its imports stand, so that lines cross less."""
    found: list[list[str]] = []
    place: dict[str, float] = {}
    for depth in range(max(map(level, folders())) + 1):
        names = [name for name in folders() if level(name) == depth]
        below = {name: [place[b] for b in direct(name)] for name in names}
        names.sort(key=lambda name: (sum(below[name]) / len(below[name]) if below[name] else 0.5, name))
        place |= {name: (i + 0.5) / len(names) for i, name in enumerate(names)}
        found.append(names)
    return found


def picture() -> str:
    """The SVG's text."""
    found, boxes = rows(), {}
    for depth, names in enumerate(found):
        y = MARGIN + (len(found) - 1 - depth) * ROW
        widths = [LETTER * len(name) + 20 for name in names]
        gap = (WIDTH - 2 * MARGIN - sum(widths)) / (len(names) + 1)
        x = MARGIN + gap
        for name, width in zip(names, widths, strict=True):
            boxes[name] = (x, y, width)
            x += width + gap
    height = 2 * MARGIN + (len(found) - 1) * ROW + BOX
    lines = [_line(boxes[name], boxes[below]) for name in sorted(boxes) for below in direct(name)]
    shapes = [_box(name, *boxes[name]) for name in sorted(boxes)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">'
    back = f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
    return "\n".join([head, back, *lines, *shapes, "</svg>", ""])


def _line(upper: tuple[float, float, float], lower: tuple[float, float, float]) -> str:
    x1, y1, x2, y2 = upper[0] + upper[2] / 2, upper[1] + BOX, lower[0] + lower[2] / 2, lower[1]
    bend = (y2 - y1) / 2
    path = f"M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}"
    return f'<path d="{path}" fill="none" stroke="#b8c4d0"/>'


def _box(name: str, x: float, y: float, width: float) -> str:
    fill = "#ffe1c4" if name in SPINE else "#e8f0f8"
    frame = f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{BOX}" rx="5" fill="{fill}" stroke="#5a6b7c"/>'
    return frame + f'<text x="{x + width / 2:.0f}" y="{y + 17:.0f}" text-anchor="middle" fill="#1c2733">{escape(name)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(picture())
