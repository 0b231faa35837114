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

import base64
import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..audio import to_mono_16k
from ..face import NoFaceError
from ..face_motion import open_landmarker
from ..media import open_sound, probe
from ..pipeline import LipSync
from ..types import FlashLipsError, Progress
from .filters import Limits
from .report import write_report
from .samples import Labellers, Made, SampleMaker
from .scenes import find_candidates, read_at_rate
from .shards import ShardPlan, WriteError, pack, plan_shards, sample_bytes, write_json, write_whole
from .sources import SPLITS, Source, find_sources

log = logging.getLogger(__name__)

FORMAT, VERSION = "flashlips-dataset", 1
NO_FACE, UNREADABLE = "no face", "unreadable"  # reasons of whole videos
PASSES = 2  # over each video: one to track, one to cut


@dataclass(frozen=True)
class BuildSettings:
    """How a set is made."""

    crop_px: int = 256  # side of the editor's square; stored crops are a quarter wider
    limits: Limits = Limits()
    identity: str = "folder"  # "folder", "file" or a CSV file, see find_sources
    val: float = 0.05  # shares of the identities
    test: float = 0.05
    seed: int = 0  # of the split and of the order of samples
    shard_mb: int = 256
    threshold: float = 0.5  # lowest detection score that counts as a face
    landmarker: str | None = None  # MediaPipe's .task file, for landmarks and blendshapes
    has_latents: bool = False  # store the codec's latents of every square too


def build(
    videos: Sequence[str | Path],
    out: str | Path,
    lipsync: LipSync,
    settings: BuildSettings = BuildSettings(),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build the set in the folder ``out``, or go on with it; see :func:`summary` for what is returned.

    ``progress`` counts kB of video. Videos that cannot be read are reported and left out. Raises FlashLipsError where there are
    no videos, nothing can be kept, or the folder cannot be written or holds another set.
    """
    _check(settings)
    out = Path(out)
    sources = find_sources(videos, settings.identity, settings.val, settings.test, settings.seed)
    _claim(out, sources, lipsync, settings)
    if not (out / "index.json").is_file():
        if not (out / "work" / "plan.json").is_file():
            _measure_all(sources, out, lipsync, settings, progress)
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
    claim = out / "build.json"
    if claim.is_file() and any(path != claim for path in out.iterdir()):  # else nothing was made: a first try that went wrong
        if json.loads(claim.read_text(encoding="utf-8")) != made_of:
            raise FlashLipsError(f"{out} holds a set of other videos, settings or networks; choose another folder, or delete it.")
    elif out.is_dir() and not claim.is_file() and any(out.iterdir()):
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


# ---- video by video --------------------------------------------------------------------------------------------------------


def _measure_all(
    sources: Sequence[Source], out: Path, lipsync: LipSync, settings: BuildSettings, progress: Progress | None
) -> None:
    stamps = [_stamp(source) for source in sources]
    total, before = sum(size for size, _ in stamps) // 1000 + 1, 0
    with ExitStack() as stack:
        landmarker = stack.enter_context(open_landmarker(settings.landmarker)) if settings.landmarker else None
        labellers = Labellers(lipsync, settings.crop_px, landmarker, settings.has_latents)
        for source, stamp in zip(sources, stamps, strict=True):

            def share(done: float, before: int = before, size: int = stamp[0]) -> None:
                if progress is not None:
                    progress(int(before + done * size) // 1000, total)

            if not _is_measured(source, stamp, out):
                _measure(source, stamp, out, labellers, settings, share)
            before += stamp[0]
            share(0.0, before)
    if progress is not None:
        progress(total, total)


def _is_measured(source: Source, stamp: list[int], out: Path) -> bool:
    """Whether an earlier run is done with this video, which has not changed since."""
    state = _state_path(source, out)
    return state.is_file() and json.loads(state.read_text(encoding="utf-8"))["file"] == stamp


def _measure(
    source: Source,
    stamp: list[int],
    out: Path,
    labellers: Labellers,
    settings: BuildSettings,
    share: Callable[[float], None],
) -> None:
    """Make the samples of one video; its state is written last."""
    folder = _folder(source, out)
    shutil.rmtree(folder, ignore_errors=True)
    candidates, problem, text = [], "", ""
    try:
        for made in make_samples(source, labellers, settings, share):
            candidates.append(_kept(made, folder, source))
    except NoFaceError as error:
        problem, text = NO_FACE, str(error)
    except WriteError:
        raise
    except FlashLipsError as error:
        problem, text = UNREADABLE, str(error)
    if problem == UNREADABLE:
        shutil.rmtree(folder, ignore_errors=True)
        candidates = []
        log.warning("Left out %s: %s", source.id, text)
    state = {"file": stamp, "problem": problem, "text": text, "candidates": candidates}
    write_json(_state_path(source, out), state)


def make_samples(
    source: Source, labellers: Labellers, settings: BuildSettings, share: Callable[[float], None] | None = None
) -> Iterator[Made]:
    """Every candidate of one video, measured, in the order in which they end; ``share`` is told how much is done, 0 to 1."""
    info = probe(source.path)
    samples = to_mono_16k(open_sound(source.path)) if info.audio_rate else None

    def part(number: int) -> Progress:
        return lambda done, total: share((number + done / max(total, done, 1)) / PASSES) if share else None

    candidates = find_candidates(
        source.path, labellers.lipsync.detector, settings.threshold, settings.limits.max_seconds, part(0)
    )
    waiting, running, show = list(candidates), [], part(1)
    last = max(c.stop for c in candidates)
    with closing(read_at_rate(source.path, info)) as frames:
        for index, frame in enumerate(frames):
            while waiting and waiting[0].start == index:
                running.append(SampleMaker(source, waiting.pop(0), labellers, settings.limits, samples is not None))
            for maker in running:
                maker.push(frame, index)
            for maker in [m for m in running if m.candidate.stop == index + 1]:
                running.remove(maker)
                yield maker.finish(samples)
            show(index + 1, last)
            if index + 1 == last:
                return


def _kept(made: Made, folder: Path, source: Source) -> dict[str, Any]:
    """Write a candidate's sample where it is kept; its row of the state."""
    row = {"key": made.key, "source": source.id, "identity": source.identity, "split": source.split, "reason": made.reason}
    row |= {"measures": made.measures.as_dict(), "thumbnail": base64.b64encode(made.thumbnail).decode()}
    if made.files:
        content = sample_bytes(made.key, made.files)
        write_whole(folder / f"{made.key}.tar", lambda file: file.write(content))
        row |= {"bytes": len(content), "frames": sum(name.endswith(".jpg") for name in made.files)}
    return row


def _folder(source: Source, out: Path) -> Path:
    return out / "work" / source.key


def _state_path(source: Source, out: Path) -> Path:
    return out / "work" / f"{source.key}.json"


def _stamp(source: Source) -> list[int]:
    stat = source.path.stat()
    return [stat.st_size, stat.st_mtime_ns]


# ---- all together ----------------------------------------------------------------------------------------------------------


def read_states(sources: Sequence[Source], out: Path) -> Iterator[tuple[Source, dict[str, Any]]]:
    """Each video with its state, one at a time: thumbnails of 500 hours do not fit into memory."""
    for source in sources:
        yield source, json.loads(_state_path(source, out).read_text(encoding="utf-8"))


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
            homes[row["key"]] = _folder(source, out) / f"{row['key']}.tar"
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
