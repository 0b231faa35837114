"""Between ComfyUI and the core: folders, VIDEO, AUDIO and IMAGE in and out.

This file, ``bridge_models`` and ``progress`` are the only ones that touch comfy.* and folder_paths.
B images, H W their size, S samples, C
audio channels. ComfyUI's IMAGE is (B, H, W, 3) in [0, 1], its AUDIO {"waveform": (1, C, S), "sample_rate"}.
"""

from __future__ import annotations

import hashlib
import io as streams
import json
import os
import shutil
import uuid
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import InputImpl
from torch import Tensor

from ..flashlips_core.media import load_audio, open_sound, sound_rate
from ..flashlips_core.media.part import write_images, write_part
from ..flashlips_core.media.read import open_media
from ..flashlips_core.types import Audio, FlashLipsError, Recording
from .progress import Run

PART_PREFIX = "flashlips-part-"  # of trimmed videos in the temp folder


# ---- folders ---------------------------------------------------------------------------------------------------------------


def temp_path(suffix: str) -> Path:
    """A new file's name in ComfyUI's temp folder."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"flashlips-{uuid.uuid4().hex[:12]}{suffix}"


def output_path(prefix: str, suffix: str, width: int, height: int) -> tuple[Path, str]:
    """The next free name in ComfyUI's output folder, and its subfolder there."""
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), width, height
    )
    return Path(folder) / f"{name}_{counter:05}_{suffix}", subfolder


def input_folder() -> Path:
    """Where ComfyUI keeps what users upload."""
    return Path(folder_paths.get_input_directory())


# ---- video -----------------------------------------------------------------------------------------------------------------


@contextmanager
def video_source(video: Any, run: Run) -> Iterator[str]:
    """The path of a file that shows this VIDEO. One of ComfyUI's own files is used where it lies; others are temporary.

    A trimmed file is encoded once, nearly without loss, frame by frame, and found again by the next node that asks for the same
    part. A video made of images is encoded for each.
    """
    if video is None:
        raise FlashLipsError("There is no video; connect one from Load Video, and give that a file with a picture in it.")
    trim = video.get_active_trim_window() if hasattr(video, "get_active_trim_window") else (0.0, 0.0)
    source = video.get_stream_source() if isinstance(video, InputImpl.VideoFromFile) else None
    if isinstance(source, (str, os.PathLike)):
        yield os.fspath(_trimmed(source, trim, run) if any(trim) else source)
        return
    made = temp_path(".mov")
    upload, other = made.with_suffix(".media"), made.with_suffix(".mp4")
    try:
        if isinstance(source, streams.BytesIO):
            with upload.open("wb") as file:
                shutil.copyfileobj(source, file)
            source = upload
        if source is None:
            source = _write_other(video, made, other, run)
        elif any(trim):
            write_part(source, made, *trim, run.progress, run.show)
            source = made
        yield os.fspath(source)
    finally:
        for path in (made, upload, other):
            with suppress(OSError):  # at the latest ComfyUI empties its temp folder
                path.unlink(missing_ok=True)


def _trimmed(source: str | Path, trim: tuple[float, float], run: Run) -> Path:
    """A part of a file as a file of its own, which stays in the temp folder under a name that only this part has."""
    with open_media(source):  # else the sentence that says what is wrong with it
        stat = os.stat(source)
    key = f"{os.path.realpath(source)}:{stat.st_size}:{stat.st_mtime_ns}:{trim}"
    part = temp_path(".mov").with_name(f"{PART_PREFIX}{hashlib.sha256(key.encode()).hexdigest()[:24]}.mov")
    if not part.is_file():  # it appears whole or not at all
        run.stage("Reading the part that is used")
        write_part(source, part, *trim, run.progress, run.show)
    return part


def _write_other(video: Any, out: Path, other: Path, run: Run) -> Path:
    """A video that is no file: its images one by one as ``out``, or what an unknown class saves as ``other``."""
    if not isinstance(video, InputImpl.VideoFromComponents):
        video.save_to(os.fspath(other))
        return other
    run.stage("Reading the images")
    parts = video.get_components()  # already in memory; only the references are handed over
    sound = None if not parts.audio else audio_of(parts.audio)
    write_images(parts.images, parts.frame_rate, out, sound, run.progress, run.show)
    return out


def is_whole_file(video: Any) -> bool:
    """Whether a VIDEO is a file as it lies there, whose packets can be copied."""
    is_trimmed = hasattr(video, "get_active_trim_window") and any(video.get_active_trim_window())
    return isinstance(video, InputImpl.VideoFromFile) and not is_trimmed


def served(path: str | Path, is_lasting: bool) -> dict[str, str]:
    """A file as ComfyUI's /view names it, brought into its temp folder if it lies elsewhere or does not last."""
    file = Path(path).resolve()
    kinds = {"output": folder_paths.get_output_directory(), "temp": folder_paths.get_temp_directory(), "input": input_folder()}
    for kind, folder in kinds.items():
        folder = Path(folder).resolve()
        if is_lasting and file.is_relative_to(folder):
            subfolder = file.parent.relative_to(folder).as_posix()
            return {"filename": file.name, "subfolder": "" if subfolder == "." else subfolder, "type": kind}
    link = temp_path(file.suffix)
    try:
        os.link(file, link)
    except OSError:  # another disk
        shutil.copyfile(file, link)
    return {"filename": link.name, "subfolder": "", "type": "temp"}


def workflow_tags(prompt: Any, extra: Mapping[str, Any] | None) -> dict[str, str]:
    """What makes a saved file open as its workflow, unless the user has switched that off."""
    if args.disable_metadata:
        return {}
    tags = {**(extra or {}), **({"prompt": prompt} if prompt else {})}
    return {name: json.dumps(value) for name, value in tags.items()}


def output_video(path: str | Path) -> Any:
    """A file as a VIDEO; core's savers then copy its packets."""
    return InputImpl.VideoFromFile(os.fspath(path))


# ---- sound and pictures ----------------------------------------------------------------------------------------------------


class FileAudio(Mapping):
    """The sound of a file as ComfyUI's AUDIO: decoded when its waveform is asked for, and kept only while somebody holds that.

    Nodes of this pack read it from the file, piece by piece: see :func:`audio_of`.
    """

    KEYS = ("waveform", "sample_rate")

    def __init__(self, path: str | Path) -> None:
        self.path, self.sample_rate = path, sound_rate(path)
        self._waveform: weakref.ref[Tensor] | None = None

    def __getitem__(self, key: str) -> Tensor | int:
        if key == "sample_rate":
            return self.sample_rate
        if key != "waveform":
            raise KeyError(key)
        waveform = self._waveform() if self._waveform is not None else None
        if waveform is None:
            waveform = load_audio(self.path).samples[None]
            self._waveform = weakref.ref(waveform)
        return waveform

    def __contains__(self, key: object) -> bool:  # Mapping's own would decode
        return key in self.KEYS

    def __iter__(self) -> Iterator[str]:
        return iter(self.KEYS)

    def __len__(self) -> int:
        return len(self.KEYS)


def audio_of(audio: Mapping[str, Any] | None) -> Recording:
    """ComfyUI's AUDIO as the core has it."""
    if not audio or "waveform" not in audio:
        raise FlashLipsError("There is no audio; connect one, for example from Load Audio.")
    if isinstance(audio, FileAudio):
        return open_sound(audio.path)
    waveform = audio["waveform"]
    if waveform.ndim != 3 or len(waveform) != 1:
        raise FlashLipsError(f"The audio must be one recording, got a waveform of shape {tuple(waveform.shape)}; give one.")
    if waveform.shape[-1] == 0:
        raise FlashLipsError("The audio has zero length; choose a file with sound in it.")
    return Audio(waveform[0].detach().float().cpu(), int(audio["sample_rate"]))


def to_audio(audio: Audio) -> dict[str, Any]:
    """Sound of the core as ComfyUI's AUDIO."""
    return {"waveform": audio.samples[None], "sample_rate": audio.sample_rate}


def pictures_of(images: Tensor) -> Tensor:
    """IMAGE as the core has it, in its own range and without a copy: (B, H, W, 3 or 4) -> (B, 3, H, W); alpha is dropped."""
    if images.ndim != 4 or images.shape[-1] not in (3, 4) or not len(images):
        raise FlashLipsError(f"Images must be a batch of RGB pictures, got shape {tuple(images.shape)}.")
    return images[..., :3].movedim(-1, 1)


def images_of(pictures: Tensor) -> Tensor:
    """The way back: (B, 3, H, W) in [0, 1] -> IMAGE."""
    return pictures.movedim(1, -1).contiguous()


def check_one_clip(video: Any, images: Tensor | None) -> None:
    """Refuse none, and both."""
    if (video is None) == (images is None):
        got = "neither; a file without a picture gives no video" if video is None else "both"
        raise FlashLipsError(f"Connect either a video or images; got {got}.")
