"""The report of a build: one HTML file that needs nothing else, with what was kept, what was dropped, and why."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from .filters import REASONS
from .shards import write_whole
from .sources import SPLITS, Source

SHOWN_KEPT, SHOWN_DROPPED, SHOWN_PROBLEMS, SHOWN_PEOPLE = 60, 24, 100, 200  # pictures in all, per reason; lines of tables
BINS = 30
PLOT_W, PLOT_H = 300, 90  # CSS pixels
MEASURES = {  # measure -> title, the limit that is drawn
    "seconds": ("length, s", "min_seconds"),
    "face_px": ("face size: side of the editor's square, px of the video", "min_face_px"),
    "missing": ("share of frames without the face", "max_missing"),
    "sharpness": ("sharpness: variance of the Laplacian", "min_sharpness"),
    "sync": ("mouth against loudness: correlation", "min_sync"),
    "lag": ("frames that the mouth is late", "max_lag"),
}
STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1060px;padding:0 1em;color:#1d2126;background:#fff}
h1{margin-bottom:.2em}h2{margin:1.8em 0 .5em}table{border-collapse:collapse}
td,th{padding:.2em .9em .2em 0;text-align:left;vertical-align:top;border-bottom:1px solid #e4e7eb}
td.n,th.n{text-align:right}.note{color:#5b6570}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(310px,1fr));gap:1.2em}
.faces{display:flex;flex-wrap:wrap;gap:8px}figure{margin:0;width:96px;font-size:11px;line-height:1.25;color:#5b6570}
figure img{display:block;width:96px;height:96px;border-radius:4px}figcaption{overflow-wrap:anywhere}
svg{display:block;width:100%;height:auto}.k{fill:#2f7d5b}.d{fill:#d08a3c}.l{stroke:#b3261e;stroke-dasharray:4 3}
@media(prefers-color-scheme:dark){body{background:#15181c;color:#e6e9ed}td,th{border-color:#333a42}
.note,figure{color:#9aa5b1}svg text{fill:#9aa5b1}}
"""


@dataclass
class _Seen:
    """What the page needs of all states; pictures of a few only."""

    values: dict[str, dict[bool, list[float]]] = field(default_factory=lambda: defaultdict(lambda: {True: [], False: []}))
    pictures: dict[str, list[tuple[str, dict[str, Any]]]] = field(default_factory=lambda: defaultdict(list))
    people: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(lambda: [0, 0.0, 0]))
    problems: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, source: Source, state: Mapping[str, Any]) -> None:
        if state["problem"]:
            self.problems.append((source.id, state["problem"], state["text"]))
        for row in state["candidates"]:
            is_kept = not row["reason"]
            for name, value in row["measures"].items():
                if name in MEASURES and value is not None:
                    self.values[name][is_kept].append(float(value))
            person = self.people[(row["split"], row["identity"])]
            person[0] += is_kept
            person[1] += row["measures"]["seconds"] * is_kept
            person[2] += not is_kept
            shown = self.pictures[row["reason"]]
            shown.append((hashlib.sha256(row["key"].encode()).hexdigest(), row))
            shown.sort(key=lambda pair: pair[0])  # a choice that does not depend on the order of the videos
            del shown[SHOWN_KEPT if is_kept else SHOWN_DROPPED :]


def write_report(
    path: Path, states: Iterable[tuple[Source, Mapping[str, Any]]], counts: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Write the page.

    Args:
        states: Each video with its state, as ``build`` keeps them; read one at a time.
        counts: As ``build`` tallies them.
        settings: As ``build`` describes them.
    """
    seen = _Seen()
    for source, state in states:
        seen.add(source, state)
    limits = settings["limits"]
    body = [
        f"<h1>Training set</h1><p class=note>{_overview(counts)}</p>",
        "<h2>Kept and dropped</h2>", _reasons(counts, limits),
        "<h2>Measures</h2><p class=note>Green: kept. Orange: dropped, for whatever reason. Dashed: the limit.</p>",
        f"<div class=plots>{''.join(_plot(name, seen.values[name], limits) for name in MEASURES if name in seen.values)}</div>",
        "<h2>People</h2>", _people(seen.people),
        *(_gallery(reason, seen.pictures[reason], counts) for reason in ("", *REASONS) if seen.pictures.get(reason)),
        _problems(seen.problems), "<h2>Settings</h2>", _settings(settings),
    ]  # fmt: skip
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>Training set</title><style>{STYLE}</style>{''.join(body)}"
    write_whole(path, lambda file: file.write(page.encode()))


def _overview(counts: Mapping[str, Any]) -> str:
    left_out = f"{counts['unreadable']} could not be read, {counts['without_face']} show no face"
    kept = f"{counts['kept']} of {counts['candidates']} stretches of a face were kept, {60 * counts['hours_kept']:.1f} minutes"
    return f"{counts['videos']} videos ({left_out}). {kept}."


def _reasons(counts: Mapping[str, Any], limits: Mapping[str, Any]) -> str:
    total = max(counts["candidates"], 1)
    rows = [_row("kept", "", counts["kept"], total)]
    for reason, (_, limit) in REASONS.items():
        if counts["dropped"].get(reason):
            rows.append(_row(reason, f"{limit} = {limits[limit]}", counts["dropped"][reason], total))
    return f"<table><tr><th>reason<th>limit<th class=n>stretches<th class=n>share</tr>{''.join(rows)}</table>"


def _row(name: str, limit: str, count: int, total: int) -> str:
    return f"<tr><td>{escape(name)}<td>{escape(limit)}<td class=n>{count}<td class=n>{100 * count / total:.1f} %</tr>"


def _plot(name: str, values: Mapping[bool, Sequence[float]], limits: Mapping[str, Any]) -> str:
    """Stacked histogram of one measure as SVG; what lies beyond the outermost hundredth is drawn at the edge."""
    title, limit_name = MEASURES[name]
    both = np.array([*values[True], *values[False]])
    limit = float(limits[limit_name])
    marks = [limit, -limit] if name == "lag" else [limit]
    low, high = (float(v) for v in np.quantile(both, [0.01, 0.99]))
    low, high = min(low, *marks), max(high, *marks)
    high += 1e-6 + 0.02 * (high - low)
    kept, dropped = (np.histogram(np.clip(values[k], low, high), BINS, (low, high))[0] for k in (True, False))
    tallest, width = max(int((kept + dropped).max()), 1), PLOT_W / BINS
    bars = []
    for place, (k, d) in enumerate(zip(kept.tolist(), dropped.tolist(), strict=True)):
        top_k, top_d = PLOT_H * (1 - k / tallest), PLOT_H * (1 - (k + d) / tallest)
        x, w = f"{place * width:.1f}", f"{width - 0.8:.1f}"
        bars.append(f"<rect class=k x={x} y={top_k:.1f} width={w} height={PLOT_H - top_k:.1f} />" if k else "")
        bars.append(f"<rect class=d x={x} y={top_d:.1f} width={w} height={top_k - top_d:.1f} />" if d else "")
    lines = "".join(
        f"<line class=l x1={x:.1f} x2={x:.1f} y1=0 y2={PLOT_H} />" for x in ((m - low) / (high - low) * PLOT_W for m in marks)
    )
    ends = f"<text x=0 y={PLOT_H + 13} font-size=11>{low:.3g}</text>"
    ends += f"<text x={PLOT_W} y={PLOT_H + 13} font-size=11 text-anchor=end>{high:.3g}</text>"
    drawing = f"<svg viewBox='0 0 {PLOT_W} {PLOT_H + 16}'>{''.join(bars)}{lines}{ends}</svg>"
    return f"<div><b>{escape(title)}</b> <span class=note>{len(both)} stretches</span>{drawing}</div>"


def _people(people: Mapping[tuple[str, str], Sequence[float]]) -> str:
    totals = Counter(split for split, _ in people)
    missing = [split for split in SPLITS if not totals[split]]
    note = f"<p class=note>Nobody is in {' or '.join(missing)}.</p>" if missing else ""
    rows = [
        f"<tr><td>{split}<td>{escape(name)}<td class=n>{kept}<td class=n>{seconds / 60:.1f}<td class=n>{dropped}</tr>"
        for (split, name), (kept, seconds, dropped) in sorted(people.items(), key=lambda p: (SPLITS.index(p[0][0]), p[0][1]))
    ]
    more = f"<p class=note>and {len(rows) - SHOWN_PEOPLE} more</p>" if len(rows) > SHOWN_PEOPLE else ""
    head = "<tr><th>split<th>identity<th class=n>kept<th class=n>minutes<th class=n>dropped</tr>"
    return f"{note}<table>{head}{''.join(rows[:SHOWN_PEOPLE])}</table>{more}"


def _gallery(reason: str, chosen: Sequence[tuple[str, Mapping[str, Any]]], counts: Mapping[str, Any]) -> str:
    total = counts["dropped"].get(reason, 0) if reason else counts["kept"]
    figures = []
    for _, row in chosen:
        measured = row["measures"].get(REASONS[reason][0]) if reason else None
        value = f"{REASONS[reason][0]} {measured}<br>" if isinstance(measured, (int, float)) and reason != "no sound" else ""
        alt, name = escape(row["key"], quote=True), escape(row["source"].partition("/")[2] or row["source"])
        picture = f"<img alt='{alt}' src='data:image/jpeg;base64,{row['thumbnail']}'>"
        figures.append(f"<figure>{picture}<figcaption>{value}{name}</figcaption></figure>")
    shown = f"{len(figures)} of {total}" if len(figures) < total else f"all {total}"
    title = f"Dropped: {reason}" if reason else "Kept"
    return f"<h2>{escape(title)}</h2><p class=note>{shown}</p><div class=faces>{''.join(figures)}</div>"


def _problems(problems: Sequence[tuple[str, str, str]]) -> str:
    if not problems:
        return ""
    rows = "".join(f"<tr><td>{escape(name)}<td>{escape(text)}</tr>" for name, _, text in problems[:SHOWN_PROBLEMS])
    more = f"<p class=note>and {len(problems) - SHOWN_PROBLEMS} more</p>" if len(problems) > SHOWN_PROBLEMS else ""
    return f"<h2>Videos without a sample</h2><table>{rows}</table>{more}"


def _settings(settings: Mapping[str, Any]) -> str:
    flat = {**{k: v for k, v in settings.items() if k != "limits"}, **settings["limits"]}
    return f"<table>{''.join(f'<tr><td>{escape(k)}<td>{escape(str(v))}</tr>' for k, v in flat.items())}</table>"
