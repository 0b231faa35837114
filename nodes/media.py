"""Files: a video by its path, whatever its size, and saving with the packets copied where nothing changed."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..flashlips_core.media import has_picture, probe
from ..flashlips_core.media.save import ENCODERS, save_clip, suffix_like
from ..flashlips_core.types import Audio, ClipInfo, FlashLipsError
from . import bridge, progress, words

CATEGORY = "FlashLips/media"
SILENCE_HZ = 44_100  # of the silence that a clip without sound gets
DEMO = "flashlips-demo/"  # stands for the folder of the clips and the voice that come with FlashLips
CONTAINERS = ["auto", "mp4", "mov", "mkv", "webm"]


class LoadVideo(io.ComfyNode):
    """A file of this machine, not uploaded, not decoded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsLoadVideo",
            display_name="Load Video (Path)",
            category=CATEGORY,
            description="Loads a video that lies on the machine that runs ComfyUI, without uploading it: no limit to its size. "
            "Its pictures and its sound are read when a later node needs them. A sound file gives audio alone.",
            inputs=[
                io.String.Input(
                    "path",
                    default="",
                    tooltip="A whole path such as /home/me/clip.mp4, or the name of a file in ComfyUI's input folder. "
                    "flashlips-demo/face.mp4, pair.mp4 and voice.wav there come with FlashLips.",
                )
            ],
            search_aliases=["load video", "load audio", "open file", "video path", "upload"],
            outputs=[
                io.Video.Output(display_name="video", tooltip="The clip; empty where the file holds only sound."),
                io.Audio.Output(
                    display_name="audio", tooltip="The clip's sound at its own rate; silence of its length if it has none."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, path: str | None = None) -> bool | str:
        if path is None or _resolved(path).is_file():  # None: it comes over a wire
            return True
        return _missing(path)

    @classmethod
    def fingerprint_inputs(cls, path: str | None = None) -> str:
        file = _resolved(path or "")
        stat = file.stat() if file.is_file() else None
        return f"{file}:{stat.st_size}:{stat.st_mtime_ns}" if stat else str(file)

    @classmethod
    def execute(cls, path: str) -> io.NodeOutput:
        file = _resolved(path)
        if not file.is_file():
            raise FlashLipsError(_missing(path))
        if not has_picture(file):
            sound = bridge.FileAudio(file)
            length_s = bridge.audio_of(sound).duration
            progress.say(f"A sound file of {words.seconds(length_s)}: it has no picture, so 'video' is empty.")
            return io.NodeOutput(None, sound)
        clip = probe(file)
        progress.say(_described(clip))
        sound = bridge.FileAudio(file) if clip.audio_rate else bridge.to_audio(_silence(clip.duration))
        return io.NodeOutput(bridge.output_video(file), sound)


class SaveVideo(io.ComfyNode):
    """Into ComfyUI's output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsSaveVideo",
            display_name="Save Video (FlashLips)",
            category=CATEGORY,
            description="Saves a video into ComfyUI's output folder. 'copy' moves the coded pictures and sound as they are: no "
            "loss, no waiting.",
            search_aliases=["save video", "export video", "video combine", "mp4"],
            inputs=[
                io.Video.Input("video", tooltip="The video to save."),
                io.String.Input(
                    "filename_prefix",
                    default="video/FlashLips",
                    optional=True,
                    tooltip="Name in the output folder, with a folder before the slash; a number is added.",
                ),
                io.Combo.Input(
                    "container",
                    options=CONTAINERS,
                    default="auto",
                    optional=True,
                    tooltip="Kind of file. auto = as the video has it, mp4 for one that is no file yet; mp4 plays everywhere.",
                ),
                io.Combo.Input(
                    "codec",
                    options=["copy", *ENCODERS],
                    default="copy",
                    optional=True,
                    tooltip="copy = the coded pictures as they are (a trimmed video, and one made of images, has none and "
                    "becomes h264). Others encode again: h264 plays everywhere, h265 and av1 are smaller, ffv1 is lossless.",
                ),
                io.Int.Input(
                    "crf",
                    default=18,
                    min=0,
                    max=63,
                    optional=True,
                    advanced=True,
                    tooltip="Quality where pictures are encoded again; copy does not use it. Lower = better and larger; "
                    "18 is hardly visible in h264.",
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="Other sound, cut or filled with silence to the picture's length. Not connected: "
                    "the video's own, untouched.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        video: Any,
        filename_prefix: str = "video/FlashLips",
        container: str = "auto",
        codec: str = "copy",
        crf: int = 18,
        audio: Any = None,
    ) -> io.NodeOutput:
        sound = None if audio is None else bridge.audio_of(audio)
        with progress.running("Saving", is_shown=False) as run, bridge.video_source(video, run) as path:
            clip, has_packets = probe(path), bridge.is_whole_file(video)
            codec = "h264" if codec == "copy" and not has_packets else codec
            suffix = f".{container}" if container != "auto" else suffix_like(path) if has_packets else ".mp4"
            out, subfolder = bridge.output_path(filename_prefix, suffix, clip.width, clip.height)
            tags = bridge.workflow_tags(cls.hidden.prompt, cls.hidden.extra_pnginfo)
            run.stage("Copying" if codec == "copy" else "Encoding", 0 if codec == "copy" else clip.num_frames)
            save_clip(path, out, codec, crf, sound, tags, run.progress)
            run.finish(_saved(out, codec))
        return io.NodeOutput(ui=ui.PreviewVideo([ui.SavedResult(out.name, subfolder, io.FolderType.output)]))


def _described(clip: ClipInfo) -> str:
    """A clip in one line."""
    sound = "with sound" if clip.audio_rate else "no sound"
    return f"{clip.width} x {clip.height}, {float(clip.fps):.5g} fps, {words.seconds(clip.duration)}, {sound}"


def _saved(out: Path, codec: str) -> str:
    """What was saved, in one line."""
    size = out.stat().st_size
    text = f"{size / 1e6:.1f} MB" if size > 1e5 else f"{size / 1e3:.0f} kB"
    return f"{out.name}, {text}, " + ("packets copied" if codec == "copy" else f"encoded as {codec}")


def _silence(duration: Fraction) -> Audio:
    """So many seconds of stereo silence; the system gives its zeros memory only when somebody reads them."""
    samples = np.zeros((2, max(1, round(duration * SILENCE_HZ))), np.float32)
    return Audio(torch.from_numpy(samples), SILENCE_HZ)


def _resolved(path: str) -> Path:
    """The file that a user's text means; quotes, as file managers copy them, are dropped."""
    text = path.strip().strip("\"'")
    if text.startswith(DEMO):
        return Path(__file__).resolve().parents[1] / "flashlips_core" / "demo" / Path(text).name
    file = Path(os.path.expanduser(text))
    return file if file.is_absolute() else bridge.input_folder() / file


def _missing(path: str) -> str:
    if not path.strip():
        return "No path is given; write where the video lies on the machine that runs ComfyUI."
    return f"There is no file at {_resolved(path)}; check the path on the machine that runs ComfyUI."


NODES = [LoadVideo, SaveVideo]
