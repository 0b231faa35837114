"""``python -m flashlips_core eval --pairs FILE.csv`` or ``--generated DIR --sources DIR``: measure outputs, whoever made them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ... import measures as m
from ...face.motion import LANDMARKER_FILE
from ...pipeline import LipSync
from ...types import FlashLipsError, Progress
from .listing import Pair, Skipped
from .matching import MediaPipe, OwnLandmarks, Witness
from .page import write_page
from .rows import badness, rows_of
from .scores import Judges, Score, scored

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
        progress: counts pairs.
    """
    judges, witness = Judges.load(weights), witness_of(weights, lipsync)
    out.mkdir(parents=True, exist_ok=True)
    skipped, scores = list(skipped), []
    for done, pair in enumerate(pairs, start=1):
        try:
            sheet = out / "sheets" / f"{done:03}-{pair.name}.png"
            scores.append(scored(pair, witness, judges, lipsync.codec, sheet, frames))
        except FlashLipsError as error:
            skipped.append(Skipped(pair.name, str(error)))
        if progress is not None:
            progress(done, len(pairs))
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


def _write(out: Path, result: dict) -> None:
    (out / "result.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    (out / "table.md").write_text(result["table"], encoding="utf-8")
    names = list(dict.fromkeys(name for pair in result["pairs"] for name in pair if name not in UNCOLUMNED))
    with open(out / "clips.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*names, "notes"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(pair | {"notes": "; ".join(pair["notes"])} for pair in result["pairs"])
    write_page(out / "report.html", result, out / "sheets")
