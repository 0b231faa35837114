"""A page that shows what ``eval --videos`` measured: one HTML file with its pictures inside, for any browser, offline."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...types import FlashLipsError

NUM_WORST, NUM_MEDIAN = 4, 2
COLUMNS = ("r", "size", "detail", "detail_true", "finest", "detail_alike", "chin", "unrest", "colour", "frames_per_second")
STYLE = (
    "body{font:14px sans-serif;margin:1.5em;background:#181818;color:#ddd}table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:2px 9px;border-bottom:1px solid #444;text-align:right}td:first-child,th:first-child{text-align:left}"
    ".no{color:#f88}.yes{color:#8d8}.note{color:#999;text-align:left}img{display:block;max-width:none}"
    "div{overflow-x:auto;margin-bottom:1.5em}a{color:#8bf}"
)
# How far a dub is from good, by its numbers: shortfalls of r, of detail from 1, of the chin's, and colour in steps of 4 levels
WEIGHTS = {"r": 1.0, "detail": 0.5, "chin": 0.5}
COLOUR_STEP = 4.0


def badness(dub: Mapping) -> float:
    """What the page sorts by, 0 for a dub that no number finds fault with."""
    off = sum(weight * min(abs(1 - dub[name]), 1.0) for name, weight in WEIGHTS.items() if dub.get(name) is not None)
    return off + min(abs(dub.get("colour") or 0.0) / COLOUR_STEP, 1.0)


def write_page(path: Path, result: Mapping, sheets: Path, against: Path | None = None) -> Path:
    """Write the page; ``against`` is another run's ``result.json``, shown beside."""
    other = None if against is None else _read(against)
    ranked = sorted(result["dubs"], key=badness, reverse=True)
    middle = len(ranked) // 2
    worst = ranked[:NUM_WORST]
    shown = {"Worst": worst, "Median": [dub for dub in ranked[middle : middle + NUM_MEDIAN] if dub not in worst]}
    parts = [f"<!doctype html><meta charset=utf-8><title>eval --videos</title><style>{STYLE}</style>"]
    parts += [f"<p><code>{html.escape(result['command'])}</code></p>", _measures(result["measures"], other)]
    for name, dubs in shown.items():
        for dub in dubs:
            parts.append(_pictures(name, dub, sheets, None if against is None else against.parent / "sheets"))
    parts.append(_dubs(ranked, other))
    parts += [f"<p>Skipped {html.escape(s['clip'])}: {html.escape(s['why'])}</p>" for s in result["skipped"]]
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def _read(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"measures": found["measures"], "dubs": found["dubs"]}
    except (ValueError, KeyError, TypeError) as error:
        raise FlashLipsError(f"{path.name} is not the result.json of 'eval --videos'; give another file as --against.") from error


def _measures(measures: Sequence[Mapping], other: Mapping | None) -> str:
    before = {} if other is None else {row["name"]: row["value"] for row in other["measures"]}
    head = ["measure", "value", *(["against", "change"] if other else []), "target", "over", "note"]
    lines = [_line(head, "th")]
    for row in measures:
        passed = {True: "yes", False: "no", None: ""}[row["passed"]]
        cells = [html.escape(row["name"]), f"<span class='{passed}'>{_text(row['value'])}</span>"]
        if other:
            cells += [_text(before.get(row["name"])), _change(row["value"], before.get(row["name"]))]
        lines.append(_line([*cells, row["target"], str(row["count"]), f"<span class=note>{html.escape(row['note'])}</span>"]))
    return f"<table>{''.join(lines)}</table>"


def _dubs(dubs: Sequence[Mapping], other: Mapping | None) -> str:
    before = {} if other is None else {(d["clip"], d["voice"]): d for d in other["dubs"]}
    lines = [_line(["clip, voice", "head", *COLUMNS, "sheet"], "th")]
    for dub in dubs:
        was = before.get((dub["clip"], dub["voice"]), {})
        cells = [html.escape(f"{dub['clip']}, {dub['voice']}"), "moving" if dub["moving"] else "still"]
        for name in COLUMNS:
            past = f" <span class=note>({_text(was.get(name))})</span>" if other else ""
            cells.append(_text(dub.get(name)) + past)
        link = f"<a href='sheets/{html.escape(dub['sheet'])}'>sheet</a>" if dub.get("sheet") else ""
        lines.append(_line([*cells, link]))
    return f"<h2>All, worst first{' (the other run in brackets)' if other else ''}</h2><table>{''.join(lines)}</table>"


def _pictures(name: str, dub: Mapping, sheets: Path, others: Path | None) -> str:
    title = f"<h2>{name}: {html.escape(dub['clip'])}, {html.escape(dub['voice'])}</h2>"
    numbers = ", ".join(f"{key} {_text(dub.get(key))}" for key in COLUMNS)
    images = []
    for folder, label in ((sheets, ""), (others, "the other run")):
        file = None if folder is None or not dub.get("sheet") else folder / dub["sheet"]
        if file is not None and file.is_file():
            images.append(f"<p>{label}</p><img src='data:image/jpeg;base64,{_jpeg(file)}'>")
    return f"{title}<p>{numbers}</p><div>{''.join(images)}</div>"


def _jpeg(path: Path) -> str:
    """A picture as base64 JPEG, at its own size: sheets as PNG would make a page of tens of megabytes."""
    from PIL import Image

    memory = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(memory, "JPEG", quality=92, subsampling=0)
    return base64.b64encode(memory.getvalue()).decode("ascii")


def _line(cells: Sequence[str], tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if np.isfinite(value) else "-"


def _change(now: float | None, before: float | None) -> str:
    return "" if now is None or before is None else f"{now - before:+.3g}"
