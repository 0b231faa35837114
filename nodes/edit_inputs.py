"""Inputs that several of the editing nodes have, and what is said about them."""

from __future__ import annotations

from comfy_api.latest import io

from ..flashlips_core.steps import SHARPEN, STARTS, DubSettings
from .sockets import Editor, Poses, Track

LENGTHS = ["auto", "cut", "loop", "ping-pong", "hold", "silence"]
PRESETS = ["ultrafast", "veryfast", "fast", "medium", "slow"]
CONSENT = (
    "Dub people only with their consent, and say wherever you show the video that it was changed. Files carry a note in their "
    "metadata; it is easily lost and does not replace saying it."
)
LENGTH_TOOLTIP = (
    "Where sound and picture differ in length. auto: as long as the sound: a longer picture is cut, a shorter one goes on "
    "backwards and forwards, a still is held; cut: both end with the shorter one; loop, ping-pong, hold: the picture goes on "
    "until the sound ends, from its start, backwards, or standing still; silence: the picture keeps its length."
)
CRF_TOOLTIP = "Quality of the H.264 video. 0 = lossless, 18 = hardly visible loss, higher = smaller and worse."
TAG_TOOLTIP = "On = write into the file's metadata that the lip motion is synthetic."


def edit_inputs(track: str, unit: str) -> list[io.Input]:
    """What an edit is made of, whatever its pictures come in."""
    return [
        Track.Input("track", tooltip=track),
        Poses.Input("poses", tooltip=f"One per {unit}, or at another rate; the last one is held where they end."),
        Editor.Input("editor", tooltip="From Load Lip Editor."),
        io.Vae.Input("vae", tooltip="From Load Codec, or any VAE in SDXL's latent space."),
    ]


def length_input() -> io.Combo.Input:
    return io.Combo.Input("length", options=LENGTHS, default=LENGTHS[0], optional=True, tooltip=LENGTH_TOOLTIP)


def fit_input(seen: str) -> io.Boolean.Input:
    return io.Boolean.Input(
        "fit",
        default=True,
        optional=True,
        advanced=True,
        tooltip=f"On = the mouth opens no further than {seen}. Off = as far as the voice asks for.",
    )


def batch_input() -> io.Int.Input:
    return io.Int.Input(
        "batch",
        default=8,
        min=1,
        max=64,
        optional=True,
        advanced=True,
        tooltip="Frames edited at once. Higher = faster on a GPU and more memory; the result is the same.",
    )


def sharpen_input() -> io.Float.Input:
    return io.Float.Input(
        "sharpen",
        default=SHARPEN,
        min=0.0,
        max=1.0,
        step=0.05,
        optional=True,
        advanced=True,
        tooltip="How much of the fine detail that editing loses is put back, by sharpening the mouth. 1 = as sharp as the clip, "
        "up to a limit; 0 = as the editor drew it.",
    )


def start_input() -> io.Combo.Input:
    return io.Combo.Input(
        "start",
        options=list(STARTS),
        default=DubSettings.start,
        optional=True,
        advanced=True,
        tooltip="What an edit starts from. retrieved = each frame starts from the clip's own mouth that is nearest to the wanted "
        "one: sharper, the person's own teeth and lips; frame = the frame as it is, the paper's way.",
    )


def crf_input() -> io.Int.Input:
    return io.Int.Input("crf", default=16, min=0, max=51, optional=True, advanced=True, tooltip=CRF_TOOLTIP)


def tag_input() -> io.Boolean.Input:
    return io.Boolean.Input("tag", default=True, optional=True, advanced=True, tooltip=TAG_TOOLTIP)
