"""Reports for people: one HTML file with its pictures inside, for any browser, offline."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

STYLE = (
    "body{font:14px sans-serif;margin:1.5em;background:#181818;color:#ddd}table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:2px 9px;border-bottom:1px solid #444;text-align:right}td:first-child,th:first-child{text-align:left}"
    "td:last-child,th:last-child{text-align:left}.no{color:#f88}.yes{color:#8d8}.note{color:#999;text-align:left}img{display:block;max-width:none}"
    "div{overflow-x:auto;margin-bottom:1.5em}a{color:#8bf}"
)


@dataclass
class Page:
    """Grows part by part; everything that is given as text is escaped, what :func:`note` and the like return is not."""

    title: str
    parts: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        self.parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str, tag: str = "p") -> None:
        self.parts.append(f"<{tag}>{html.escape(text)}</{tag}>")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Cells are HTML."""
        lines = [_line(head, "th"), *(_line(row, "td") for row in rows)]
        self.parts.append(f"<div><table>{''.join(lines)}</table></div>")

    def measures(self, measures: Sequence[Mapping], other: Mapping[str, float | None] | None = None) -> None:
        """The table of measures, as ``Measure.as_dict`` gives them; ``other`` holds another run's values by name."""
        has_intervals = any(row.get("interval") for row in measures)
        beside = ["against", "change"] if other is not None else []
        head = ["measure", "value", *(["95 % interval"] if has_intervals else []), *beside, "target", "over", "note"]
        rows = []
        for row in measures:
            passed = {True: "yes", False: "no", None: ""}[row["passed"]]
            cells = [html.escape(row["name"]), f"<span class='{passed}'>{number(row['value']) or 'not measured'}</span>"]
            cells += [" to ".join(map(number, row.get("interval") or ()))] if has_intervals else []
            cells += [number(other.get(row["name"])), change(row["value"], other.get(row["name"]))] if other is not None else []
            rows.append([*cells, html.escape(row["target"]), str(row["count"]), note(row["note"])])
        self.table(head, rows)

    def picture(self, image: Path | bytes, kind: str = "jpeg") -> None:
        """A file, made a JPEG, or the bytes of a finished picture."""
        data = _jpeg(image) if isinstance(image, Path) else image
        text = base64.b64encode(data).decode("ascii")
        self.parts.append(f"<div><img src='data:image/{kind};base64,{text}'></div>")

    def save(self, path: Path) -> Path:
        head = f"<!doctype html><meta charset=utf-8><title>{html.escape(self.title)}</title><style>{STYLE}</style>"
        path.write_text("\n".join([head, *self.parts]), encoding="utf-8")
        return path


def number(value: float | None) -> str:
    """Three digits; a dash for one that is not finite."""
    return "" if value is None else f"{value:.3g}" if np.isfinite(value) else "-"


def change(now: float | None, before: float | None) -> str:
    """The difference with its sign."""
    return "" if now is None or before is None else f"{now - before:+.3g}"


def note(text: str) -> str:
    """A cell in grey."""
    return f"<span class=note>{html.escape(text)}</span>"


def _line(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


def _jpeg(path: Path) -> bytes:
    """A picture at its own size: sheets as PNG would make a page of tens of megabytes."""
    from PIL import Image

    memory = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(memory, "JPEG", quality=92, subsampling=0)
    return memory.getvalue()
