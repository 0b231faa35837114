"""File to file: track the face, pick references, make lip poses, edit the frames, write the clip.

T frames. Frames stream; a track and poses are the only things as long as the clip.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .checks import check_output, check_track
from .editing import FrameEditor, FrameRows
from .face.points import OVAL
from .media import CONTAINERS, FramePlan, plan_frames, probe, read_planned, shown_seconds, write_video
from .poses.motion import resample
from .steps import DECODED_AHEAD, ClipSteps, DubSettings, Look, Show, Source, opened
from .stream import prefetch
from .system.clock import StageClock
from .types import ClipInfo, FaceTrack, Frame, LipPoses, Progress, Recording, Waiting

PROVENANCE = {"comment": "Edited with FlashLips: the lip motion is synthetic."}
DEFAULTS = DubSettings()
Stage = Callable[[str, int], None]
"""``stage(name, count)``: told in words what begins, and how many frames it has, as far as that is known."""


@dataclass
class Report:
    """What was done. Work of different stages overlaps in time, so their seconds add up to more than the whole."""

    path: str
    frames: int = 0
    edited: int = 0
    without_face: int = 0  # passed through unchanged
    references: list[int] = field(default_factory=list)  # frame indices
    fps: float = 0.0  # frames of the clip per second
    total_s: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)  # of work, by stage

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"frames_per_second": self.frames / self.total_s if self.total_s else 0.0}


class LipSync(ClipSteps):
    """The whole method; see :class:`Parts` for what it is made of, and ``load`` for how to get one."""

    def edit_video(
        self,
        source: Source,
        track: FaceTrack,
        poses: LipPoses,
        out: Source,
        settings: DubSettings = DEFAULTS,
        *,
        audio: Source | Recording | None = None,
        references: Sequence[int] | Look | None = None,
        progress: Progress | None = None,
        show: Show | None = None,
        stage: Stage | None = None,
        clock: StageClock | None = None,
        **changes: Any,
    ) -> Report:
        """Write ``source``, as far as its track goes, with the mouth in ``poses``.

        Args:
            track: Of ``source``; its frames without a face pass through unchanged.
            poses: One per output frame at the clip's rate; other rates are resampled, the last pose is held.
            audio: New sound; None keeps the packets of ``source``.
            references: Frame indices, or what :meth:`look` gave; None chooses.
            progress: Counts frames; repeats the count while the next one takes long.
            show: Gets each finished frame, for a preview; called before ``progress`` counts it.
            stage: Told what begins.
            changes: Single fields of ``settings``.
        """
        started, clock = time.perf_counter(), clock or StageClock(self.device)
        settings = replace(settings, **changes)
        check_output(out, [source, audio], tuple(CONTAINERS))
        look = references if isinstance(references, Look) else None
        if look is None:  # else it was made with these very parts
            self.check_ready(settings, needs_voice=False)
        clip = probe(source)
        check_track(track, clip)
        sound = None if audio is None else opened(audio)
        tell = stage or _nobody
        if look is None:
            tell("Choosing references", len(track))
            with clock("choose references"):
                look = self.look(source, track, settings.num_references, given=references)
        plan = plan_for(clip, len(track), sound, settings)
        rows = plan_rows(plan, track, poses, clip)
        if look.mouths is not None and settings.is_retrieved:
            wanted = resample(rows.poses, clip.fps, len(plan)).values if rows.uneven else rows.poses.values
            starts, needs = self.starts(look, wanted, track, plan.indices)
            rows = replace(rows, starts=starts, needs=needs)
        reporter = _Reporter(progress, show, clock, len(rows))
        tell("Editing frames", len(rows))
        reporter.again()
        is_edited = rows.needs is None or bool(rows.needs[rows.present].any())
        editor = self._frame_editor(look, track.usual_side, settings, clock, reporter.again, is_edited)
        frames = prefetch(clock.timed("read", read_planned(source, plan)), DECODED_AHEAD)
        with closing(reporter.reported(editor(frames, rows, reporter.again))) as edited:
            tags = PROVENANCE if settings.is_tagged else None
            like = replace(clip, duration=min(clip.duration, len(plan) / clip.fps))  # chapters of what is shown
            kept = None if sound else source
            write_video(out, edited, like, sound, kept, settings.crf, settings.preset, tags, extras_from=source)
        times = {"total_s": time.perf_counter() - started, "seconds": dict(clock.seconds)}
        return Report(str(out), **asdict(editor.counts), references=look.frames, fps=float(clip.fps), **times)

    def dub(
        self,
        video: Source,
        audio: Source | Recording | None,
        out: Source,
        settings: DubSettings = DEFAULTS,
        *,
        track: FaceTrack | None = None,
        poses: LipPoses | None = None,
        look: Look | None = None,
        progress: Progress | None = None,
        show: Show | None = None,
        stage: Stage | None = None,
        **changes: Any,
    ) -> Report:
        """Write ``video`` speaking ``audio``.

        Args:
            audio: A sound or video file; None keeps the clip's own sound.
            track, look, poses: Computed where they are not given. Given poses are used as they are, whatever ``settings`` say.
            progress: Counts the frames of three passes: tracking, choosing references, editing; listening repeats the count.
            show: Gets each finished frame, for a preview.
            stage: Told what begins.
            changes: Single fields of ``settings``.
        """
        started, clock = time.perf_counter(), StageClock(self.device)
        settings = replace(settings, **changes)
        check_output(out, [video, audio], tuple(CONTAINERS))
        clip, voice = probe(video), _voice(video, audio, is_needed=poses is None)
        self.check_ready(settings, needs_voice=poses is None)
        sound = None if audio is None else voice
        shown, stop = frames_needed(clip, sound, settings)
        seen, tell = stop or clip.num_frames, stage or _nobody
        passes = _Passes(progress, 0 if track is not None else seen, 0 if look is not None else seen, shown)
        if track is None:
            tell("Finding the face", seen)
            with clock("track"):
                track = self.track(video, settings, stop, passes.first, show)
        if look is None:
            tell("Choosing references", seen)
            with clock("choose references"):
                look = self.look(video, track, settings.num_references, passes.second)
        if poses is None:
            tell("Making the lip motion", 0)
            with clock("sound to poses"):
                poses = self.poses_for(voice, look.poses, settings, passes.between)
        watching = {"progress": passes.third, "show": show, "stage": stage, "clock": clock}
        report = self.edit_video(video, track, poses, out, settings, audio=sound, references=look, **watching)
        return replace(report, total_s=time.perf_counter() - started)

    def _frame_editor(
        self, look: Look, box_side: float, settings: DubSettings, clock: StageClock, waiting: Waiting, is_edited: bool
    ) -> FrameEditor:
        mouths = look.mouths if settings.is_retrieved else None
        crop_editor = self.prepared(look, settings, box_side, clock, waiting) if is_edited else None
        return FrameEditor(crop_editor, mouths.size if mouths else self.crop_px, settings.batch, clock, mouths=mouths)


def plan_for(clip: ClipInfo, num_frames: int, sound: Recording | None, settings: DubSettings) -> FramePlan:
    """Which of a clip's first frames are shown when, with new sound or the clip's own."""
    length, mode = (sound.duration, settings.length) if sound else (clip.duration, "silence")
    return plan_frames(num_frames, clip.fps, length, mode, shown_seconds(clip, num_frames))


def frames_needed(clip: ClipInfo, sound: Recording | None, settings: DubSettings) -> tuple[int, int | None]:
    """How many frames a dub shows, and before which of the clip's frames it ends; None: not before the last."""
    shown = len(plan_for(clip, clip.num_frames, sound, settings))
    return shown, shown if settings.length in ("auto", "cut") and shown < clip.num_frames else None


def plan_rows(plan: FramePlan, track: FaceTrack, poses: LipPoses, clip: ClipInfo) -> FrameRows:
    """Box, flag and pose of each output frame."""
    is_per_frame = poses.fps == track.fps and len(poses) == len(track)
    by_time = clip if clip.is_variable_rate and not is_per_frame else None
    if by_time is None:
        poses = resample(replace(poses, fps=clip.fps) if is_per_frame else poses, clip.fps, len(plan))
    outlines = None if track.landmarks is None else track.landmarks[plan.indices][:, OVAL]
    return FrameRows(track.squares[plan.indices], track.present[plan.indices], poses, by_time, outlines)


def _voice(video: Source, audio: Source | Recording | None, is_needed: bool) -> Recording | None:
    """What is spoken: the new sound, or the clip's own where something must be heard."""
    if audio is None:
        return opened(video) if is_needed else None
    return opened(audio)


@dataclass
class _Reporter:
    """Edited frames, reported one by one; the count is repeated while the next frame is awaited."""

    progress: Progress | None
    show: Show | None
    clock: StageClock
    total: int
    done: int = 0

    def again(self) -> None:
        """No more yet."""
        if self.progress is not None:
            self.progress(self.done, self.total)

    def reported(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """The same frames; what the consumer does between them is counted as encoding."""
        with closing(frames):
            for frame in frames:
                with self.clock("encode video"):
                    yield frame
                if self.show is not None:
                    self.show(frame)
                self.done += 1
                self.again()


class _Passes:
    """One count over three passes: tracking, choosing references, editing; each attribute is a pass's progress, None where
    nobody listens."""

    def __init__(self, progress: Progress | None, tracked: int, looked: int, shown: int) -> None:
        total = tracked + looked + shown

        def part(before: int, size: int) -> Progress | None:
            return None if progress is None else lambda done, _: progress(before + min(done, size), total)

        self.first, self.second, self.third = part(0, tracked), part(tracked, looked), part(tracked + looked, shown)
        self.between = None if progress is None else lambda *_: progress(tracked + looked, total)


def _nobody(name: str, count: int) -> None:
    """Where nobody is told."""
