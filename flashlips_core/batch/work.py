"""What a worker of a batch does: follow a face once for the jobs that share a video, and dub them one after the other."""

from __future__ import annotations

import base64
import io
import logging
import os
import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from ..compose import whole_picture
from ..media import open_sound, probe, read_frames
from ..pipeline import LipSync, frames_needed
from ..sidecar import load_poses, load_track, save_track
from ..steps import Look
from ..system.memory import is_out_of_memory
from ..types import FaceTrack, FlashLipsError, Frame, LipPoses
from .jobs import Job, digest
from .places import below, exists, fetched, is_address, put

STATE = ".batch"  # folder of what a batch keeps beside its outputs
PART = "part-"  # of names of folders with unfinished work; the number of the process at it follows
PICTURE_PX = 320  # longest side of a job's picture in the summary

Outcome = dict[str, Any]
"""Of one job, for JSON: "state" (done or failed), "error", "notes" (warnings), "report", "picture" (JPEG, base64), its worker."""


class Stopped(Exception):
    """The batch is being stopped; the work at hand is dropped."""


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker is told as it starts."""

    folder: str  # the batch's: a path that all workers see, or an address
    device: str | None  # None: the first there is
    threads: int | None  # of PyTorch on the CPU; None leaves them


class Worker:
    """One process's part: networks stay loaded from job to job, and so does what was seen of the last person."""

    def __init__(self, options: WorkerOptions, is_stopped: Callable[[], bool] | None = None) -> None:
        self.options = options
        self._is_asked_to_stop = False
        self._is_stopped = is_stopped or (lambda: self._is_asked_to_stop)
        self._copies: tuple[str, tempfile.TemporaryDirectory] | None = None  # of files from addresses, for one video
        self._lipsync: tuple[Any, LipSync] | None = None
        self._seen: tuple[Any, FaceTrack, Look] | None = None
        if options.threads:
            torch.set_num_threads(options.threads)

    def stop(self) -> None:
        """Drop the work at hand, from another thread."""
        self._is_asked_to_stop = True

    def track(self, jobs: Sequence[Job]) -> Outcome:
        """Follow the face that these jobs share, as far as any of them shows it: {"track": its place}, or {"error": why not}."""
        first = jobs[0]
        if first.track:
            return {"track": first.track}
        try:
            with _said(first.video):
                end = self._end(jobs)
                place = below(self.options.folder, f"{STATE}/tracks/{digest([first.shared, end])}.safetensors")
                if not exists(place):
                    track = self._models(first).track(self._local(first).video, first.settings, end, self._progress)
                    with self._unfinished() as folder:
                        save_track(track, folder / "track.safetensors")
                        put(folder / "track.safetensors", place)
                return {"track": place}
        except FlashLipsError as error:
            return {"error": " ".join(str(error).split())}

    def dub(self, job: Job, track: str) -> Outcome:
        """Write one dub, with the track at this place; what is wrong with it becomes its outcome."""
        started = time.perf_counter()
        with _warnings() as notes:
            try:
                with _said(job.output):
                    outcome = {"state": "done", **self._dubbed(job, track)}
            except FlashLipsError as error:
                outcome = {"state": "failed", "error": " ".join(str(error).split()), "picture": self._first_picture(job)}
        seconds = time.perf_counter() - started
        return outcome | {"notes": notes, "seconds": seconds, "host": socket.gethostname(), "process": os.getpid()}

    def _dubbed(self, job: Job, track_place: str) -> Outcome:
        here, lipsync, settings = self._local(job), self._models(job), job.settings
        track, look = self._look(job, track_place)
        poses = self._poses(here, lipsync)
        sound = here.voice or here.driving
        clip = probe(here.video)
        picture = _Picture(frames_needed(clip, open_sound(sound) if sound else None, settings)[0] // 2)
        with self._unfinished() as folder:
            part = folder / PurePosixPath(job.output).name
            given = {"track": track, "look": look, "poses": poses}
            report = lipsync.dub(here.video, sound, part, settings, **given, progress=self._progress, show=picture)
            put(part, below(self.options.folder, job.output))
        return {"report": report.as_dict() | {"path": job.output}, "picture": picture.jpeg()}

    def _look(self, job: Job, track_place: str) -> tuple[FaceTrack, Look]:
        """The track, and what one pass over the clip shows of the person: kept for the next job on the same."""
        key = (track_place, job.settings.num_references, job.shared)
        if self._seen is None or self._seen[0] != key:
            track, count = load_track(fetched(track_place, self._folder(job.video))), job.settings.num_references
            self._seen = key, track, self._models(job).look(self._local(job).video, track, count, self._progress)
        return self._seen[1:]

    def _poses(self, job: Job, lipsync: LipSync) -> LipPoses | None:
        """Lip motion that does not come from the voice."""
        if job.driving:
            return lipsync.moved(lipsync.poses_from_video(job.driving, progress=self._progress), job.settings.gain)
        return load_poses(job.poses) if job.poses else None

    def _end(self, jobs: Sequence[Job]) -> int | None:
        """Before which of the clip's frames all of these dubs end; None: not before its last."""
        clip, ends = probe(self._local(jobs[0]).video), []
        for job in jobs:
            with suppress(FlashLipsError):  # a voice that cannot be read is said when it is its job's turn
                here = self._local(job)
                sound = here.voice or here.driving
                ends.append(frames_needed(clip, open_sound(sound) if sound else None, job.settings)[1])
        return None if not ends or None in ends else max(ends)

    def _models(self, job: Job) -> LipSync:
        if self._lipsync is None or self._lipsync[0] != job.models:
            self._lipsync = self._seen = None  # let go of the old ones first: both may not fit into memory
            models = dict(job.models)
            self._lipsync = job.models, LipSync.load(models.pop("folder", None), **models, device=self.options.device)
        return self._lipsync[1]

    def _local(self, job: Job) -> Job:
        """The same job with files of this machine."""
        folder = self._folder(job.video)
        places = {name: getattr(job, name) for name in ("video", "voice", "driving", "poses")}
        return replace(job, **{name: str(fetched(place, folder)) for name, place in places.items() if place})

    def _folder(self, video: str) -> Path:
        """For copies of what belongs to this video; those of the last one are removed."""
        if self._copies is None or self._copies[0] != video:
            if self._copies is not None:
                self._copies[1].cleanup()
            self._copies = video, tempfile.TemporaryDirectory(prefix="flashlips-")
        return Path(self._copies[1].name)

    @contextmanager
    def _unfinished(self) -> Iterator[Path]:
        """A folder for a file until it is whole, on the same disk as its place where that is a path."""
        home = None
        if not is_address(self.options.folder):
            home = Path(self.options.folder, STATE)
            if not home.is_dir():
                raise FlashLipsError(
                    f"{socket.gethostname()} does not see the folder {home.parent}; on a cluster, -o must be a folder that all "
                    "machines share, or an address such as s3://bucket/dubs."
                )
        with tempfile.TemporaryDirectory(prefix=f"{PART}{os.getpid()}-", dir=home) as folder:
            yield Path(folder)

    def _first_picture(self, job: Job) -> str | None:
        """Of a job that failed, where its video can be read."""
        picture = _Picture(0)
        with suppress(FlashLipsError), closing(read_frames(self._local(job).video, stop=1)) as frames:
            picture(next(frames))
        return picture.jpeg()

    def _progress(self, done: int, total: int) -> None:
        if self._is_stopped():
            raise Stopped


class _Picture:
    """Keeps one of the frames that it is shown: the ``index``-th, or the last where there are fewer."""

    def __init__(self, index: int) -> None:
        self.left, self.frame = index, None

    def __call__(self, frame: Frame) -> None:
        if self.left >= 0:
            self.frame, self.left = frame, self.left - 1

    def jpeg(self) -> str | None:
        """As base64."""
        if self.frame is None:
            return None
        from PIL import Image

        rgb = ((whole_picture(self.frame, PICTURE_PX) + 1) * 127.5).round().clamp(0, 255).byte()
        file = io.BytesIO()
        Image.fromarray(rgb.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=80)
        return base64.b64encode(file.getvalue()).decode()


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Turn what went wrong into one sentence, so that a fault in one job does not end the others."""
    try:
        yield
    except (FlashLipsError, Stopped):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise FlashLipsError("Out of memory; choose a smaller --batch, fewer --workers, or smaller media.") from error
        logging.getLogger(__name__).debug("%s", traceback.format_exc())
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise FlashLipsError(
            f"An error of FlashLips itself with {what}: {type(error).__name__}: {error} ({Path(place.filename).name}, line "
            f"{place.lineno}); please report it."
        ) from error


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What the library warns of meanwhile, instead of on the terminal, where a hundred jobs would bury it."""
    notes: list[str] = []
    library = logging.getLogger(__name__.partition(".batch")[0])
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: notes.append(record.getMessage())
    is_propagating, library.propagate = library.propagate, False
    library.addHandler(handler)
    try:
        yield notes
    finally:
        library.removeHandler(handler)
        library.propagate = is_propagating
