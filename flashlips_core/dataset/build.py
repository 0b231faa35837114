"""Build a training set from videos: measure, filter and cut every video once, then pack what was kept into shards.

What is in the folder:

    index.json        settings, identities and shards; written last: where it is, the set is whole
    train-00000.tar   shards (see ``shards``), likewise val and test
    samples.jsonl     every candidate, kept or dropped: measures and reason
    report.html       the same to look at
    work/             of an unfinished build: a state file per finished video, and the samples that are not in a shard yet

A build that was stopped goes on where it was and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from ..pipeline import LipSync
from ..system.locks import alone_with
from ..types import FlashLipsError, Progress
from .report import write_report
from .shards import ShardPlan, pack, plan_shards, write_json, write_whole
from .sources import SPLITS, Source, find_sources
from .videos import DEFAULTS, NO_FACE, UNREADABLE, BuildSettings, measure_all, sample_path, state_path

FORMAT, VERSION = "flashlips-dataset", 1
LOCK = ".lock"  # there while a process builds


def build(
    videos: Sequence[str | Path],
    out: str | Path,
    lipsync: LipSync,
    settings: BuildSettings = DEFAULTS,
    progress: Progress | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """Build the set in the folder ``out``, or go on with it; see :func:`summary` for what is returned.

    ``progress`` counts kB of video; ``workers`` is how many processes share the videos, each with networks of its own. Videos
    that cannot be read are reported and left out. Raises FlashLipsError where there are no videos, nothing can be kept, or the
    folder cannot be written or holds another set.
    """
    _check(settings)
    out = Path(out)
    sources = find_sources(videos, settings.identity, settings.val, settings.test, settings.seed)
    with alone_with(out, out / LOCK):
        _claim(out, sources, lipsync, settings)
        if not (out / "index.json").is_file():
            if not (out / "work" / "plan.json").is_file():
                measure_all(sources, out, lipsync, settings, progress, workers)
            _finish(sources, out, settings)
        shutil.rmtree(out / "work", ignore_errors=True)
        return summary(out)


def summary(out: str | Path) -> dict[str, Any]:
    """What a finished set holds: counts by split and by reason, hours, bytes, and where its report lies."""
    out = Path(out)
    index = json.loads((out / "index.json").read_text(encoding="utf-8"))
    totals = {s: {k: sum(shard[k] for shard in index["shards"] if shard["split"] == s) for k in ("samples", "frames", "bytes")}
              for s in SPLITS}  # fmt: skip
    return {
        "path": str(out), "report": str(out / "report.html"), "shards": len(index["shards"]), "splits": totals,
        "identities": {split: len(names) for split, names in index["identities"].items()}, **index["counts"],
    }  # fmt: skip


def _check(settings: BuildSettings) -> None:
    if settings.crop_px % 64 or settings.crop_px < 64:
        raise FlashLipsError(f"Crops must be a multiple of 64 pixels wide, got {settings.crop_px}; choose 256 or 512.")
    limits = settings.limits
    if not 0 < limits.min_seconds <= limits.max_seconds:
        raise FlashLipsError(
            f"Samples of {limits.min_seconds:g} to {limits.max_seconds:g} s cannot be; the shortest must be above 0 and at most "
            "the longest."
        )


def _claim(out: Path, sources: Sequence[Source], lipsync: LipSync, settings: BuildSettings) -> None:
    """Say before the work whether the folder can be written and is not another set's."""
    made_of = {
        "settings": described(settings), "sources": [[s.id, s.identity, s.split] for s in sources],
        "lip_encoder": _digest(lipsync.lip_encoder), "detector": type(lipsync.detector).__name__,
    }  # fmt: skip
    if settings.has_latents:
        made_of["codec"] = _digest(lipsync.codec)
    claim, lock = out / "build.json", out / LOCK
    is_made = any(path not in (claim, lock) for path in out.iterdir())
    if claim.is_file() and is_made:  # else nothing was made: a first try that went wrong
        if json.loads(claim.read_text(encoding="utf-8")) != made_of:
            raise FlashLipsError(f"{out} holds a set of other videos, settings or networks; choose another folder, or delete it.")
    elif is_made:
        raise FlashLipsError(f"{out} is not empty and holds no training set; choose another folder.")
    else:
        write_json(claim, made_of)


def described(settings: BuildSettings) -> dict[str, Any]:
    """The settings for JSON; of files the names alone, which are the same on every machine."""
    fields = asdict(settings)
    fields["identity"] = Path(settings.identity).name
    fields["landmarker"] = Path(settings.landmarker).name if settings.landmarker else None
    return fields


def _digest(network: nn.Module | Any) -> str:
    """What a network is: a hash of its weights, or of its kind where it is none of ours."""
    if not isinstance(network, nn.Module):
        network = getattr(network, "network", network)
    digest = hashlib.sha256(type(network).__name__.encode())
    if isinstance(network, nn.Module):
        for name, value in network.state_dict().items():
            digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


# ---- all together ----------------------------------------------------------------------------------------------------------


def read_states(sources: Sequence[Source], out: Path) -> Iterator[tuple[Source, dict[str, Any]]]:
    """Each video with its state, one at a time: thumbnails of 500 hours do not fit into memory."""
    for source in sources:
        yield source, json.loads(state_path(source, out).read_text(encoding="utf-8"))


def _finish(sources: Sequence[Source], out: Path, settings: BuildSettings) -> None:
    """Plan, pack, report. From the plan on, the videos are not looked at again."""
    rows, counts, homes = _tally(sources, out)
    write_whole(out / "samples.jsonl", lambda f: f.writelines((json.dumps(r, sort_keys=True) + "\n").encode() for r in rows))
    write_report(out / "report.html", read_states(sources, out), counts, described(settings))
    kept = [row for row in rows if row.get("bytes")]
    if not kept:
        raise _nothing_kept(counts, out)
    plan = plan_shards([(r["key"], r["split"], r["bytes"]) for r in kept], settings.shard_mb * 10**6, settings.seed)
    write_json(out / "work" / "plan.json", [asdict(shard) for shard in plan])
    pack(plan, homes, out)
    shards = [_shard_row(shard, {r["key"]: r for r in kept}, out) for shard in plan]
    identities = {split: sorted({r["identity"] for r in kept if r["split"] == split}) for split in SPLITS}
    head = {"format": FORMAT, "version": VERSION, "settings": described(settings), "counts": counts}
    write_json(out / "index.json", head | {"identities": identities, "shards": shards})


def _tally(sources: Sequence[Source], out: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Path]]:
    """Rows of all candidates without their pictures, counts, and where each kept sample lies."""
    rows, homes, reasons, problems = [], {}, Counter(), Counter()
    for source, state in read_states(sources, out):
        problems[state["problem"]] += 1
        for row in state["candidates"]:
            rows.append({k: v for k, v in row.items() if k != "thumbnail"})
            reasons[row["reason"]] += 1
            homes[row["key"]] = sample_path(source, out, row["key"])
    kept_s = sum(row["measures"]["seconds"] for row in rows if not row["reason"])
    counts = {
        "videos": len(sources), UNREADABLE: problems[UNREADABLE], "without_face": problems[NO_FACE], "candidates": len(rows),
        "kept": reasons.pop("", 0), "dropped": dict(sorted(reasons.items())), "hours_kept": round(kept_s / 3600, 4),
    }  # fmt: skip
    return rows, counts, homes


def _shard_row(shard: ShardPlan, rows: dict[str, dict[str, Any]], out: Path) -> dict[str, Any]:
    frames = sum(rows[key]["frames"] for key in shard.keys)
    size = (out / shard.name).stat().st_size
    return {"name": shard.name, "split": shard.split, "samples": len(shard.keys), "frames": frames, "bytes": size}


def _nothing_kept(counts: dict[str, Any], out: Path) -> FlashLipsError:
    videos, unreadable, faceless = (counts[k] for k in ("videos", UNREADABLE, "without_face"))
    if not counts["candidates"]:
        return FlashLipsError(
            f"No face in any of the {videos} videos ({unreadable} cannot be read); choose videos of talking people, or lower the "
            "detection threshold."
        )
    dropped = ", ".join(f"{count} {reason}" for reason, count in counts["dropped"].items())
    return FlashLipsError(
        f"Nothing was kept of {videos} videos, {faceless} of them without a face ({dropped}); {out / 'report.html'} shows why: "
        "widen the limits, into another folder."
    )
