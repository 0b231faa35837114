"""What is done with a clip before its frames are edited: track the face, read its lips, choose references, hear a voice.

T frames, K candidate frames, S crop side in pixels. Frames stream; a track and poses are the only things as long as the clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from .checks import check_track, no_face_in
from .compose import cut, cut_batch
from .editing import CropEditor
from .face.points import OVAL
from .face.readings import lip_gap
from .media import LengthMode, check_quality, open_sound, probe, read_frames
from .models.lip_encoder import mouth_region
from .parts import Parts
from .pixels import resized
from .poses.motion import fill_absent, fit_to_range, gain
from .poses.sampling import SamplerSettings, sample_poses
from .poses.silence import silence_gate
from .references import candidate_frames, choose_references, head_turns, mouth_frames
from .retrieval import (
    RIM_PX,
    Faces,
    Mouths,
    choose_path,
    fine_size,
    mouth_window,
    needs_of,
    no_rims,
    rim_of,
    steady_openings,
)
from .sharpen import check_share
from .stream import awaited, batched, counted, prefetch
from .system.clock import StageClock
from .system.memory import is_out_of_memory
from .turned import to_shares
from .types import POSE_DIM, FaceTrack, FlashLipsError, Frame, LipPoses, Progress, Recording, Waiting

Source = str | Path
Show = Callable[[Frame], None]
Cutter = Callable[[int], Tensor]
"""From a side in pixels to one frame's crop of that side, (3, side, side) in [-1, 1]."""
STARTS = ("retrieved", "frame")
MODES = ("mask-free", "masked")
FACE_WORDS = ("largest", "left", "right")
LIP_MOTION = 1.15  # small editors hold back: at 1 MediaPipe sees the bundled one's lips move a fifth less far than asked
SHARPEN = 1.0  # all of what edits of the clip's own references lose
LIPS_BATCH = 16  # frames cut at once where only their lips are read
LIPS_AT_ONCE = 4  # crops in the lip encoder between two looks at whether the work is still wanted
DECODED_AHEAD = 16  # frames; more than the largest reordering delay of H.264


@dataclass(frozen=True)
class DubSettings:
    """What a user may choose about a dub; the defaults suit a video of one person talking."""

    which: Any = "largest"  # "largest", "left", "right", n-th from the left (0 first), a picture's path, or a FaceReference
    every: int = 1  # detect in every n-th frame, interpolate between
    stabilise: str = "smooth"
    threshold: float = 0.5  # lowest detection score that counts as a face
    length: str = "cut"  # where sound and picture differ in length: cut, loop, ping-pong, hold, silence
    sampler: SamplerSettings = SamplerSettings()
    gate: bool = True  # close the mouth where nobody speaks
    fit: bool = True  # make the motion smaller where the mouth would open further than the person's does
    gain: float = LIP_MOTION  # how much further from rest than sampled the lips move
    sharpen: float = SHARPEN  # how much of the fine detail that the editor loses is put back, 0 to 1
    num_references: int | None = None  # None: as many as suit the editor
    batch: int = 8  # frames edited at once
    crf: int = 16  # x264's quality: 0 lossless, 18 hardly visible, 28 small
    preset: str = "veryfast"
    mode: str = "mask-free"
    start: str = "retrieved"  # what an edit starts from: the clip's own nearest mouth, or the "frame" as it is (paper)
    is_tagged: bool = True  # say in the file that the lip motion is synthetic

    def __post_init__(self) -> None:
        check_share(self.sharpen)  # before the long work, not after it
        check_quality(self.crf, self.preset)
        choices = {"start": STARTS, "mode": MODES, "length": get_args(LengthMode)}
        for name, words in choices.items():
            if getattr(self, name) not in words:
                raise FlashLipsError(f"Unknown {name} '{getattr(self, name)}'; choose one of {', '.join(words)}.")
        least = {"every": 1, "batch": 1, "num_references": 1, "threshold": 0, "gain": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not low <= value < math.inf:
                raise FlashLipsError(f"'{name}' must be {low} or more, got {value}; choose another number.")

    @property
    def is_retrieved(self) -> bool:
        """Whether edits start from the clip's own mouths; an editor that must not see the mouth has no use for them."""
        return self.start == "retrieved" and self.mode != "masked"


@dataclass(frozen=True)
class Look:
    """What one pass over the clip shows of the person."""

    references: Tensor  # (R, 3, S, S) crops in [-1, 1]
    frames: list[int]  # theirs
    poses: Tensor  # (K, 12) lip poses of frames spread over the clip
    mouths: Mouths | None = None  # what edits may start from
    rims: np.ndarray | None = None  # (T, K) what surrounds the mouth in each frame, see ``retrieval``
    reference_poses: Tensor | None = None  # (R, 12) what the references' lips do; None: nobody has read them yet

    def with_references(self, crops: Tensor) -> Look:
        """The same clip with other pictures as references, (R, 3, S, S)."""
        return replace(self, references=crops, frames=[], reference_poses=None)


class ClipSteps(Parts):
    """The single steps; :class:`LipSync` joins them."""

    def track(
        self,
        video: Source,
        settings: DubSettings = DubSettings(),
        stop: int | None = None,
        progress: Progress | None = None,
        show: Show | None = None,
    ) -> FaceTrack:
        """Where the face is in each frame (of the first ``stop``); ``show`` gets each of them, for a preview."""
        from .face import track_faces

        clip, which = probe(video), self._wanted_face(settings.which)
        with closing(prefetch(read_frames(video, stop=stop), DECODED_AHEAD)) as frames:
            seen, choice = counted(frames, clip.num_frames, show=show), (settings.every, settings.stabilise, settings.threshold)
            return track_faces(seen, clip, self.detector, which, *choice, progress)

    def _wanted_face(self, which: Any) -> Any:
        """The same, with a picture's path replaced by the face in it."""
        if not isinstance(which, (str, Path)) or which in FACE_WORDS:
            return which
        from PIL import Image, UnidentifiedImageError

        from .face import reference_face

        try:
            with Image.open(which) as picture:
                return reference_face(np.array(picture.convert("RGB")), self.detector)
        except (OSError, UnidentifiedImageError) as error:
            words = ", ".join(FACE_WORDS)
            raise FlashLipsError(
                f"The face '{which}' is neither {words}, a number, nor a picture that can be read; choose one."
            ) from error

    def poses_from_audio(
        self,
        audio: Source | Recording,
        sources: Tensor | None = None,
        settings: DubSettings = DubSettings(),
        progress: Progress | None = None,
    ) -> LipPoses:
        """Lip poses for a voice, 25 per second.

        Args:
            sources: (K, 12) poses of the person to be dubbed; None for the model's own rest pose.
        """
        from .audio import to_mono_16k

        samples = to_mono_16k(opened(audio))
        beat = None if progress is None else lambda *_: progress(0, 1)  # a place to stop at; listening is quick
        features = self.audio_encoder.encode(samples, beat)
        emotion = self.emotion_encoder.encode(samples) if self.emotion_encoder and self.pose_model.config.emotion_dim else None
        poses = sample_poses(self.pose_model, features, sources, settings.sampler, emotion, progress)
        return silence_gate(poses, features, self._rest()) if settings.gate else poses

    def _faces(self, track: FaceTrack, poses: Tensor, rims: np.ndarray, frames: np.ndarray) -> Faces:
        """What is known of a clip's ``frames`` (T,), with poses (T, 12) and the clip's rims."""
        scenes = np.zeros(len(track), np.int32) if track.scene is None else track.scene
        return Faces(poses, self.openings(poses), head_turns(track)[frames], scenes[frames], rims[frames])

    def poses_for(
        self,
        audio: Source | Recording,
        seen: Tensor,
        settings: DubSettings = DubSettings(),
        progress: Progress | None = None,
    ) -> LipPoses:
        """What a dub takes from a voice for one person: sampled, made to fit what the person shows, and then moved.

        Args:
            seen: (K, 12) poses of the person's frames, as a look has them.
        """
        poses = self.poses_from_audio(audio, seen, settings, progress)
        return self.moved(self.fitted(poses, seen) if settings.fit else poses, settings.gain)

    def fitted(self, poses: LipPoses, seen: Tensor) -> LipPoses:
        """The same motion within what the person shows: ``seen`` (K, 12), as a look has it; a still shows no range."""
        if len(seen) < 2:
            return poses
        return fit_to_range(poses, self.openings(poses.values), self.openings(seen), self._rest())

    def openings(self, poses: Tensor) -> np.ndarray:
        """How far poses (T, 12) open the lips: their gap over the eyes' distance. (T,)"""
        return self.lip_encoder.opening(poses.to(self.lip_encoder.opening_weight)).float().cpu().numpy()

    def _rest(self) -> Tensor:
        return self.pose_model.rest_pose.float().cpu()

    def moved(self, poses: LipPoses, times: float) -> LipPoses:
        """The lips ``times`` as far from rest."""
        return poses if times == 1.0 else gain(poses, times, times, self._rest())

    @torch.inference_mode()
    def poses_from_video(
        self,
        video: Source,
        track: FaceTrack | None = None,
        progress: Progress | None = None,
        show: Show | None = None,
    ) -> LipPoses:
        """Lip poses of the person in a video, one per frame; interpolated where there is no face.

        Args:
            show: Gets a frame of each batch.
        """
        track = track or self.track(video, progress=progress, show=show)
        check_track(track, probe(video))
        values = torch.zeros(len(track), POSE_DIM)
        done = 0
        with closing(prefetch(read_frames(video, stop=len(track)), DECODED_AHEAD)) as frames:
            for group in batched(frames, LIPS_BATCH):
                rows = [i for i in range(len(group)) if track.present[done + i]]
                if rows:
                    index = [done + i for i in rows]
                    values[index] = self.encode_lips(cut_batch([group[i] for i in rows], track.squares[index], self.crop_px))
                done += len(group)
                if show is not None:
                    show(group[-1])
                if progress is not None:
                    progress(done, len(track))
        if done < len(track):
            raise FlashLipsError(f"{Path(video).name} has {done} frames, its track {len(track)}; track this file again.")
        return LipPoses(fill_absent(values, track.present), track.fps)

    @torch.inference_mode()
    def encode_lips(self, crops: Tensor, waiting: Waiting | None = None) -> Tensor:
        """Lip poses of crops (B, 3, S, S) in [-1, 1], a few at once. -> (B, 12) float32 on the CPU."""
        parts = awaited(crops.split(LIPS_AT_ONCE), waiting)
        return self._read_mouths(torch.cat([mouth_region(part, self.lip_encoder.config.mouth_px) for part in parts]))

    def _read_mouths(self, mouths: Tensor) -> Tensor:
        """Lip poses of mouth regions. -> (B, 12) float32 on the CPU."""
        weight = next(self.lip_encoder.parameters())
        return torch.cat([self.lip_encoder.read_mouths(part.to(weight)).float().cpu() for part in mouths.split(LIPS_AT_ONCE)])

    def look(
        self,
        video: Source,
        track: FaceTrack,
        count: int | None = None,
        progress: Progress | None = None,
        given: Sequence[int] | None = None,
    ) -> Look:
        """References, lip poses and mouths of the person, from one pass over the clip.

        Args:
            count: Of references; None: as many as suit the editor.
            given: Frames to take as references; None chooses.
        """
        if not track.present.any():
            raise no_face_in(video)
        shown = np.flatnonzero(track.present)
        with closing(self._cutters(video, track, shown, progress)) as cutters:
            return self.look_at(cutters, track, count, given)

    @torch.inference_mode()
    def look_at(
        self, cutters: Iterable[Cutter], track: FaceTrack, count: int | None = None, given: Sequence[int] | None = None
    ) -> Look:
        """:meth:`look` at frames that come from anywhere: a cutter for each that shows the face, in order."""
        shown = np.flatnonzero(track.present)
        candidates = set(candidate_frames(track).tolist() if given is None else map(int, given))
        if not candidates or not candidates <= set(shown.tolist()):
            raise FlashLipsError(
                f"Reference frames {sorted(candidates)} must be some of the track's {len(track)} frames, and show the face; "
                "choose others."
            )
        kept = np.union1d(sorted(candidates), mouth_frames(track)).astype(int)
        size, rims = fine_size(self.crop_px, track.usual_side), no_rims(len(track))
        view, wanted, windows, small, crops = mouth_window(size), set(kept.tolist()), [], [], []
        for frame, cutter in zip(shown.tolist(), cutters, strict=True):
            if frame not in wanted:
                rims[frame] = rim_of(cutter(RIM_PX))
                continue
            fine = cutter(size)[None]
            rims[frame] = rim_of(resized(fine, RIM_PX)[0])
            windows.append(((fine[(0, ..., *view)] + 1) * 127.5).round().byte())
            small.append(mouth_region(fine, self.lip_encoder.config.mouth_px))
            if frame in candidates:
                crops.append(resized(fine, self.crop_px))
        regions, crops = torch.cat(small), torch.cat(crops)
        poses, mirrored = self._read_mouths(regions), self._read_mouths(regions.flip(-1))
        is_candidate = torch.tensor([frame in candidates for frame in kept.tolist()])
        chosen = list(range(len(crops)))
        if given is None:
            chosen = choose_references(crops, poses[is_candidate], count or self.editor.num_references)
        gaps = None if track.landmarks is None else lip_gap(track.landmarks[kept])
        openings = steady_openings(self.openings(poses), self.openings(mirrored), gaps, kept)
        faces = replace(self._faces(track, poses, rims, kept), openings=openings)
        references = kept[is_candidate.numpy()][chosen].tolist()
        mouths = _mouths(torch.stack(windows), faces, track, kept, size)
        return Look(crops[chosen], references, poses, mouths, rims, poses[is_candidate][chosen])

    def _cutters(self, video: Source, track: FaceTrack, frames: np.ndarray, progress: Progress | None) -> Iterator[Cutter]:
        """A cutter for each of some frames of the track (sorted), in one pass."""
        wanted, found, count = set(frames.tolist()), 0, int(frames[-1]) + 1
        with closing(prefetch(read_frames(video, stop=count), DECODED_AHEAD)) as stream:
            for index, frame in enumerate(stream):
                if index in wanted:
                    found += 1
                    yield partial(cut, frame, track.squares[index])
                if progress is not None:
                    progress(index + 1, count)
        if found < len(wanted):
            raise FlashLipsError(f"{Path(video).name} ends before frame {count - 1} of its track; track this file again.")

    def check_mode(self, mode: str) -> None:
        """Refuse a mode that does not suit the editor."""
        if self.is_refined and mode == "masked":
            raise FlashLipsError(
                "This editor was refined to see the mouth that it changes (stage 2); use mode 'mask-free', or a stage-1 editor."
            )
        if self.is_stage_1 and mode == "mask-free":
            raise FlashLipsError(
                "This editor was trained on masked frames only (stage 1); use mode 'masked', or a refined editor."
            )

    def check_ready(self, settings: DubSettings, needs_voice: bool) -> None:
        """Load what a dub needs, so that a wrong checkpoint, mode or crop size is said before the long work."""
        self.check_mode(settings.mode)
        names = ("codec", "editor", "lip_encoder", "pose_model", "audio_encoder", "emotion_encoder")
        for name in names if needs_voice else names[:3]:
            getattr(self, name)
        if not self.is_usual_crop:
            self._check_crop(settings.mode)

    @torch.inference_mode()
    def _check_crop(self, mode: str) -> None:
        """Refuse a crop size at which the editor works on nothing, or not at all."""
        noise = torch.rand(2, 3, self.crop_px, self.crop_px, generator=torch.Generator().manual_seed(0)) * 2 - 1
        try:
            editor = CropEditor(self.codec, self.editor, noise[:1], is_masked=mode == "masked")
            _, alpha = editor(noise[1:], torch.ones(1, POSE_DIM))
        except (RuntimeError, ValueError, AssertionError) as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())
            raise FlashLipsError(f"The editor cannot work on {self.crop_px} px crops ({reason}); leave the size out.") from error
        if not alpha.any():
            raise FlashLipsError(f"The editor changes nothing in crops of {self.crop_px} px; leave the size out.")

    def prepared(
        self,
        look: Look,
        settings: DubSettings = DubSettings(),
        box_side: float | None = None,
        clock: StageClock | None = None,
        waiting: Waiting | None = None,
    ) -> CropEditor:
        """The editor prepared with a look's references.

        Args:
            box_side: Usual side of the boxes that crops are pasted into, in frame pixels; None: that of the crops.
        """
        self.check_mode(settings.mode)
        poses = self.encode_lips(look.references, waiting) if look.reference_poses is None else look.reference_poses
        how = {"is_masked": settings.mode == "masked", "sharpen": settings.sharpen, "box_side": box_side}
        how["keeps_detail"] = settings.is_retrieved and look.mouths is not None
        return CropEditor(self.codec, self.editor, look.references, poses, clock=clock, waiting=waiting, **how)

    def starts(self, look: Look, poses: Tensor, track: FaceTrack, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the look's mouths each output frame starts from, (T,) int, and how much of an edit it then needs, (T,).

        Args:
            poses: (T, 12) that are wanted.
            frames: (T,) int, the clip's frames that are shown.
        """
        assert look.mouths is not None and look.rims is not None, "a look of reference pictures alone has no mouths"
        wanted = self._faces(track, poses, look.rims, frames)
        path = choose_path(look.mouths, wanted)
        return path, needs_of(look.mouths, wanted, path)


def _mouths(windows: Tensor, faces: Faces, track: FaceTrack, frames: np.ndarray, size: int) -> Mouths:
    outlines = None if track.landmarks is None else to_shares(track.landmarks[frames][:, OVAL], track.squares[frames])
    return Mouths(windows, faces, frames, outlines, size)


def opened(sound: Source | Recording) -> Recording:
    """A sound that may be given as a file."""
    return open_sound(sound) if isinstance(sound, (str, Path)) else sound
