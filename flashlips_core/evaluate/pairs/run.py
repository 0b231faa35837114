"""``python -m flashlips_core eval --pairs FILE.csv`` or ``--generated DIR --sources DIR``: measure outputs, whoever made them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ... import measures as m
from ...face.motion import LANDMARKER_FILE
from ...media import probe
from ...pipeline import LipSync
from ...types import FlashLipsError, Progress
from .listing import Pair, Skipped
from .matching import MediaPipe, OwnLandmarks, Witness
from .page import write_page
from .rows import badness, rows_of
from .scores import Judges, Score, scored

CARD_CONDITIONS = ("faces and lips by", "ceiling")
UNCOLUMNED = ("curves", "notes")  # of a clip, in a CSV file


def witness_of(weights: Path | None, lipsync: LipSync) -> Witness:
    """MediaPipe where its file is there, else the bundled landmark network."""
    landmarker = None if weights is None else weights / LANDMARKER_FILE
    return MediaPipe(landmarker) if landmarker is not None and landmarker.is_file() else OwnLandmarks(lipsync)


def measure_pairs(
    pairs: Sequence[Pair],
    lipsync: LipSync,
    out: Path,
    weights: Path | None = None,
    skipped: Sequence[Skipped] = (),
    command: str = "",
    frames: int | None = None,
    progress: Progress | None = None,
) -> dict:
    """Measure, and write ``result.json``, ``clips.csv``, ``table.md``, ``report.html`` and contact sheets into ``out``.

    Args:
        lipsync: its codec's round trip is the ceiling; its face tracker finds the faces where MediaPipe is not there.
        weights: folder with MediaPipe's landmarker and the networks that judge; what it lacks is a row that says so.
        skipped: what was left out before.
        frames: the first so many of each video only.
        progress: counts frames, each of them three times: where the face is in either video, and how the pictures compare.
    """
    judges, witness, count = Judges.load(weights), witness_of(weights, lipsync), _Count(pairs, frames, progress)
    out.mkdir(parents=True, exist_ok=True)
    skipped, scores = list(skipped), []
    for number, pair in enumerate(pairs):
        try:
            sheet = out / "sheets" / f"{number + 1:03}-{pair.name}.png"
            scores.append(scored(pair, witness, judges, lipsync.codec, sheet, frames, count.one_more))
        except FlashLipsError as error:
            skipped.append(Skipped(pair.name, str(error)))
        count.finished(number)
    if not scores:
        why = f"the first: {skipped[0].why}" if skipped else "the list is empty."
        raise FlashLipsError(f"None of {len(skipped)} outputs could be measured; {why}")
    conditions = {
        "faces and lips by": witness.name,
        "ceiling": f"round trip through {lipsync.codec.name}",
        "clips": f"{len(scores)} measured, {len(skipped)} not",
        "intervals": "95 % of the means over clips drawn again with replacement"
        if len(scores) >= m.LEAST_CLIPS
        else f"none; {m.LEAST_CLIPS} clips are needed",
        "torch": torch.__version__,
    }
    result = _result(scores, skipped, judges, conditions, command)
    _write(out, result)
    return result


class _Count:
    """How far all pairs are, in frames."""

    def __init__(self, pairs: Sequence[Pair], frames: int | None, progress: Progress | None) -> None:
        self.progress, self.done = progress, 0
        self.ends = np.cumsum([3 * _length(pair, frames) for pair in pairs]) if progress is not None else None

    def one_more(self) -> None:
        self.done += 1
        self._tell()

    def finished(self, number: int) -> None:
        if self.ends is not None:
            self.done = int(self.ends[number])
        self._tell()

    def _tell(self) -> None:
        if self.progress is not None:
            total = int(self.ends[-1])
            self.progress(min(self.done, total), total)


def _length(pair: Pair, frames: int | None) -> int:
    """Frames to look at; 1 for a video that cannot be read, which is said when its turn comes."""
    try:
        count = min(probe(path).num_frames for path in (pair.generated, pair.source))
    except FlashLipsError:
        return 1
    return min(count, frames or count)


def _result(
    scores: Sequence[Score], skipped: Sequence[Skipped], judges: Judges, conditions: dict[str, str], command: str
) -> dict:
    measures = rows_of([score.numbers for score in scores], judges)
    lines = [m.markdown_table(measures, command)]
    lines += [f"- {name}: {value}" for name, value in conditions.items()]
    lines += [f"- {score.pair.name}: {text}" for score in scores for text in score.notes]
    lines += [f"- not measured: {one.name}: {one.why}" for one in skipped]
    return {
        "command": command,
        "conditions": conditions,
        "measures": [row.as_dict() for row in measures],
        "pairs": [score.as_dict() | {"faults": badness(score.numbers)} for score in scores],
        "skipped": [{"name": one.name, "why": one.why} for one in skipped],
        "table": "\n".join(lines) + "\n",
    }


def lines_of(result: dict) -> tuple[list[tuple[str, str, str]], list[str]]:
    """What a score card of one clip shows: name, value and note of what was measured; sentences on the rest."""
    measured = [row for row in result["measures"] if row["value"] is not None]
    lines = [
        (row["name"], f"{row['value']:.3g}" if abs(row["value"]) < 100 else f"{row['value']:.0f}", row["note"])
        for row in measured
    ]
    remarks = [f"{name}: {value}" for name, value in result["conditions"].items() if name in CARD_CONDITIONS]
    remarks += result["pairs"][0]["notes"]
    reasons: dict[str, list[str]] = {}
    for row in result["measures"]:
        if row["value"] is None:
            reasons.setdefault(row["note"], []).append(row["name"])
    remarks += [f"not measured: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return lines, remarks


def _write(out: Path, result: dict) -> None:
    (out / "result.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    (out / "table.md").write_text(result["table"], encoding="utf-8")
    names = list(dict.fromkeys(name for pair in result["pairs"] for name in pair if name not in UNCOLUMNED))
    with open(out / "clips.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*names, "notes"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(pair | {"notes": "; ".join(pair["notes"])} for pair in result["pairs"])
    write_page(out / "report.html", result, out / "sheets")
