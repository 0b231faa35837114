"""What became of a batch: ``summary.json``, and ``summary.html``, one file that needs nothing else, with a picture per job."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from .jobs import Job
from .places import below, is_address, write

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 1em;color:#1d2126;background:#fff}
h1{margin-bottom:.2em}.note{color:#5b6570}
.jobs{display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));gap:1.2em;margin-top:1.5em}
figure{margin:0;overflow-wrap:anywhere}img,.none{display:block;width:100%;aspect-ratio:16/9;object-fit:contain;border-radius:4px;
background:#e4e7eb}figcaption{font-size:13px}.failed figcaption b{color:#b3261e}
@media(prefers-color-scheme:dark){body{background:#15181c;color:#e6e9ed}.note{color:#9aa5b1}img,.none{background:#262c33}
a{color:#8ab4f8}.failed figcaption b{color:#f2a49e}}
"""


def write_summary(folder: str, jobs: Sequence[Job], outcomes: Mapping[str, Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    """Write both files and return what the JSON holds.

    Args:
        outcomes: by output, as workers give them; jobs without one have not been done.
        seconds: that this run took.
    """
    rows = [_line(job, outcomes.get(job.output)) for job in jobs]
    states = [row["state"] for row in rows]
    summary = {
        "jobs": rows,
        **{state: states.count(state) for state in ("done", "failed", "waiting")},
        "frames": sum(row.get("frames", 0) for row in rows),
        "video_s": sum(row.get("video_s", 0.0) for row in rows),
        "work_s": sum(row.get("seconds", 0.0) for row in rows),
        "run_s": seconds,
        "summary": below(folder, "summary.html"),
    }
    write(below(folder, "summary.json"), (json.dumps(summary, indent=1) + "\n").encode())
    pictures = {output: outcome.get("picture") for output, outcome in outcomes.items()}
    write(below(folder, "summary.html"), _page(summary, pictures).encode())
    return summary


def _line(job: Job, outcome: Mapping[str, Any] | None) -> dict[str, Any]:
    line: dict[str, Any] = {"output": job.output, "video": job.video, "voice": job.voice or job.driving or job.poses}
    if outcome is None:
        return line | {"state": "waiting"}
    line |= {name: outcome[name] for name in ("state", "error", "notes", "seconds", "host") if outcome.get(name)}
    if report := outcome.get("report"):
        line |= {name: report[name] for name in ("frames", "edited", "without_face")}
        line["video_s"] = report["frames"] / report["fps"]
    return line


def _page(summary: Mapping[str, Any], pictures: Mapping[str, str | None]) -> str:
    counts = ", ".join(f"{summary[state]} {state}" for state in ("done", "failed", "waiting") if summary[state])
    length = f"{summary['video_s']:.0f} s of video, {summary['work_s']:.0f} s of work"
    order = {"failed": 0, "waiting": 1, "done": 2}  # what needs somebody first
    figures = "".join(
        _figure(row, pictures.get(row["output"])) for row in sorted(summary["jobs"], key=lambda row: order[row["state"]])
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Batch</title><style>{STYLE}</style><h1>Batch</h1>"
        f"<p class=note>{len(summary['jobs'])} jobs: {counts}. {length}.</p><div class=jobs>{figures}</div>"
    )


def _figure(row: Mapping[str, Any], picture: str | None) -> str:
    name = escape(row["output"])
    image = f"<img alt='' src='data:image/jpeg;base64,{picture}'>" if picture else "<div class=none></div>"
    title = f"<a href='{quote(row['output'])}'>{name}</a>" if row["state"] == "done" else f"<b>{name}</b> {row['state']}"
    lines = [title, f"<span class=note>{escape(_short(row['video']))} + {escape(_short(row['voice']))}</span>"]
    if "frames" in row:
        faceless = f", {row['without_face']} without a face" if row["without_face"] else ""
        lines.append(f"<span class=note>{row['frames']} frames{faceless}, {row['seconds']:.1f} s</span>")
    lines += [escape(text) for text in (row.get("error"), *row.get("notes", ())) if text]
    return f"<figure class={row['state']}>{image}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


def _short(place: str) -> str:
    return place if is_address(place) else place.replace("\\", "/").rsplit("/", 1)[-1]
