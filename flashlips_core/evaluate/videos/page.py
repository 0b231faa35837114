"""What ``eval --videos`` measured, as a page."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...types import FlashLipsError
from ..page import Page, note, number

NUM_WORST, NUM_MEDIAN = 4, 2
COLUMNS = ("r", "size", "detail", "detail_true", "finest", "detail_alike", "chin", "unrest", "colour", "frames_per_second")
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
    page = Page("eval --videos")
    page.text(result["command"], "code")
    page.measures(result["measures"], other and {row["name"]: row["value"] for row in other["measures"]})
    shown = {"Worst": worst, "Median": [dub for dub in ranked[middle : middle + NUM_MEDIAN] if dub not in worst]}
    for name, dubs in shown.items():
        for dub in dubs:
            _pictures(page, name, dub, {"": sheets} | ({} if against is None else {"the other run": against.parent / "sheets"}))
    _dubs(page, ranked, other)
    for skipped in result["skipped"]:
        page.text(f"Skipped {skipped['clip']}: {skipped['why']}")
    return page.save(path)


def _read(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"measures": found["measures"], "dubs": found["dubs"]}
    except (ValueError, KeyError, TypeError) as error:
        raise FlashLipsError(f"{path.name} is not the result.json of 'eval --videos'; give another file as --against.") from error


def _dubs(page: Page, dubs: Sequence[Mapping], other: Mapping | None) -> None:
    before = {} if other is None else {(d["clip"], d["voice"]): d for d in other["dubs"]}
    rows = []
    for dub in dubs:
        was = before.get((dub["clip"], dub["voice"]), {})
        cells = [html.escape(f"{dub['clip']}, {dub['voice']}"), "moving" if dub["moving"] else "still"]
        for name in COLUMNS:
            cells.append(number(dub.get(name)) + (f" {note(f'({number(was.get(name))})')}" if other else ""))
        rows.append([*cells, f"<a href='sheets/{html.escape(dub['sheet'])}'>sheet</a>" if dub.get("sheet") else ""])
    page.heading(f"All, worst first{' (the other run in brackets)' if other else ''}")
    page.table(["clip, voice", "head", *COLUMNS, "sheet"], rows)


def _pictures(page: Page, name: str, dub: Mapping, folders: Mapping[str, Path]) -> None:
    page.heading(f"{name}: {dub['clip']}, {dub['voice']}")
    page.text(", ".join(f"{key} {number(dub.get(key))}" for key in COLUMNS))
    for label, folder in folders.items():
        if dub.get("sheet") and (folder / dub["sheet"]).is_file():
            page.text(label)
            page.picture(folder / dub["sheet"])
