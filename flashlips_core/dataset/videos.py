"""Video by video, in one process or several: measure, filter and cut each once, and keep its state.

A finished video has a state file, written last: whoever is stopped does only the unfinished ones again.
"""

from __future__ import annotations

import base64
import copy
import functools
import json
import logging
import multiprocessing
import queue
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..audio import to_mono_16k
from ..face import NoFaceError
from ..face.motion import open_landmarker
from ..media import open_sound, probe
from ..pipeline import LipSync
from ..system.children import end_with_parent
from ..types import FlashLipsError, Progress
from .filters import Limits
from .samples import Labellers, Made, SampleMaker
from .scenes import find_candidates, read_at_rate
from .shards import WriteError, sample_bytes, write_json, write_whole
from .sources import Source

log = logging.getLogger(__name__)

NO_FACE, UNREADABLE = "no face", "unreadable"  # reasons of whole videos
PASSES = 2  # over each video: one to track, one to cut
PATIENCE_S = 1.0  # between two looks at whether the workers are alive


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


DEFAULTS = BuildSettings()


@dataclass(frozen=True)
class _Job:
    """One video to do."""

    source: Source
    stamp: list[int]  # size and time of the file


def measure_all(
    sources: Sequence[Source], out: Path, lipsync: LipSync, settings: BuildSettings, progress: Progress | None, workers: int = 1
) -> None:
    """Bring every video to its state; those that have one and did not change since are left alone."""
    jobs = [_Job(source, _stamp(source)) for source in sources]
    todo = [job for job in jobs if not _is_measured(job, out)]
    total = sum(job.stamp[0] for job in jobs)
    done = total - sum(job.stamp[0] for job in todo)

    def report(bytes_done: float) -> None:
        if progress is not None:
            progress(int(bytes_done) // 1000, total // 1000 + 1)

    if workers > 1 and len(todo) > 1:
        _measure_in_processes(todo, out, lipsync, settings, min(workers, len(todo)), lambda share: report(done + share))
        return
    with open_labellers(lipsync, settings) as labellers:
        for job in todo:
            size = job.stamp[0]
            _warn(job.source, _measure(job, out, labellers, settings, lambda s, d=done, n=size: report(d + s * n)))
            done += size
            report(done)


@contextmanager
def open_labellers(lipsync: LipSync, settings: BuildSettings) -> Iterator[Labellers]:
    """The networks that label crops, MediaPipe's among them where it is asked for."""
    if settings.landmarker is None:
        yield Labellers(lipsync, settings.crop_px, None, settings.has_latents)
        return
    with open_landmarker(settings.landmarker) as landmarker:
        yield Labellers(lipsync, settings.crop_px, landmarker, settings.has_latents)


def state_path(source: Source, out: Path) -> Path:
    """Where a finished video's state is kept."""
    return out / "work" / f"{source.key}.json"


def sample_path(source: Source, out: Path, key: str) -> Path:
    """Where a sample waits for its shard."""
    return out / "work" / source.key / f"{key}.tar"


# ---- one video -------------------------------------------------------------------------------------------------------------


def _measure(
    job: _Job, out: Path, labellers: Labellers, settings: BuildSettings, share: Callable[[float], None] | None = None
) -> str:
    """Make the samples of one video; its state is written last. Returns why it cannot be read, "" if it can."""
    source, folder = job.source, out / "work" / job.source.key
    shutil.rmtree(folder, ignore_errors=True)
    candidates, problem, text = [], "", ""
    try:
        for made in make_samples(source, labellers, settings, share):
            candidates.append(_kept(made, source, out))
    except NoFaceError as error:
        problem, text = NO_FACE, str(error)
    except WriteError:
        raise
    except FlashLipsError as error:
        problem, text, candidates = UNREADABLE, str(error), []
        shutil.rmtree(folder, ignore_errors=True)
    write_json(state_path(source, out), {"file": job.stamp, "problem": problem, "text": text, "candidates": candidates})
    return text if problem == UNREADABLE else ""


def _warn(source: Source, text: str) -> None:
    if text:
        log.warning("Left out %s: %s", source.id, text)


def _is_measured(job: _Job, out: Path) -> bool:
    """Whether an earlier run is done with this video, which has not changed since."""
    state = state_path(job.source, out)
    return state.is_file() and json.loads(state.read_text(encoding="utf-8"))["file"] == job.stamp


def _stamp(source: Source) -> list[int]:
    stat = source.path.stat()
    return [stat.st_size, stat.st_mtime_ns]


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


def _kept(made: Made, source: Source, out: Path) -> dict[str, Any]:
    """Write a candidate's sample where it is kept; its row of the state."""
    row = {"key": made.key, "source": source.id, "identity": source.identity, "split": source.split, "reason": made.reason}
    row |= {"measures": made.measures.as_dict(), "thumbnail": base64.b64encode(made.thumbnail).decode()}
    if made.files:
        content = sample_bytes(made.key, made.files)
        write_whole(sample_path(source, out, made.key), lambda file: file.write(content))
        row |= {"bytes": len(content), "frames": sum(name.endswith(".jpg") for name in made.files)}
    return row


# ---- in several processes --------------------------------------------------------------------------------------------------


def _measure_in_processes(
    todo: Sequence[_Job], out: Path, lipsync: LipSync, settings: BuildSettings, workers: int, report: Callable[[float], None]
) -> None:
    """Let processes take one video after the other. Whatever goes wrong, none of them outlives this call."""
    context = multiprocessing.get_context("spawn")  # neither CUDA nor threads survive a fork
    next_job, results = context.Value("q", 0), context.Queue()
    arguments = (list(todo), next_job, results, out, unloaded(lipsync), settings)
    processes = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(workers)]
    finished = 0
    try:
        for process in processes:
            process.start()
        for _ in todo:
            place, text, is_fatal = _next_result(results, processes)
            if is_fatal:
                raise FlashLipsError(text)
            _warn(todo[place].source, text)
            finished += todo[place].stamp[0]
            report(finished)
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()
        for part in (out / "work").rglob("*.part"):
            part.unlink(missing_ok=True)


def _next_result(results: multiprocessing.Queue, processes: Sequence[multiprocessing.Process]) -> tuple[int, str, bool]:
    while True:
        try:
            return results.get(timeout=PATIENCE_S)
        except queue.Empty:
            dead = [process.exitcode for process in processes if process.exitcode]
            if dead:
                raise FlashLipsError(
                    f"A worker was killed (exit code {dead[0]}); if memory ran out, run it again with fewer workers: what is "
                    "done is kept."
                ) from None


def _work(
    todo: Sequence[_Job],
    next_job: Any,
    results: multiprocessing.Queue,
    out: Path,
    lipsync: LipSync,
    settings: BuildSettings,
) -> None:
    """A worker: (place, why the video cannot be read, is fatal) for each video that it takes."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the others
    torch.set_num_threads(1)
    place = -1
    try:
        with open_labellers(lipsync, settings) as labellers:
            while (place := _take(next_job)) < len(todo):
                results.put((place, _measure(todo[place], out, labellers, settings), False))
    except FlashLipsError as error:
        results.put((place, str(error), True))


def _take(next_job: Any) -> int:
    with next_job.get_lock():
        place = next_job.value
        next_job.value += 1
    return place


def unloaded(lipsync: LipSync) -> LipSync:
    """The same parts by name: what was loaded by name is loaded anew where it is used, on a device of its own process."""
    fresh = copy.copy(lipsync)
    for name in list(vars(fresh)):
        if isinstance(getattr(type(fresh), name, None), functools.cached_property):
            delattr(fresh, name)
    return fresh
