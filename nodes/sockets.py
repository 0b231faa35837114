"""Kinds of wires that ComfyUI does not have, and inputs that several nodes share."""

from __future__ import annotations

from comfy_api.latest import io

Dataset = io.Custom("FLASHLIPS_DATASET")
Editor = io.Custom("FLASHLIPS_EDITOR")
LipEncoder = io.Custom("FLASHLIPS_LIP_ENCODER")
PoseModel = io.Custom("FLASHLIPS_POSE_MODEL")
Poses = io.Custom("FLASHLIPS_POSES")
Track = io.Custom("FLASHLIPS_TRACK")

EDITOR_TOOLTIP = (
    "Which lip editor: bundled = sharper, bundled-fast = quicker, on smaller crops, bundled-transformer = its pupil "
    "with the other backbone; others are .safetensors files in models/flashlips, such as one fine-tuned on this person."
)
IMAGES_FPS = "Frames per second of the images; 29.97 means 30000/1001. A video brings its own rate."


def fps_input(tooltip: str = IMAGES_FPS) -> io.Float.Input:
    """Frames or poses per second."""
    return io.Float.Input("fps", default=25.0, min=1.0, max=240.0, step=0.001, optional=True, tooltip=tooltip)


DETECTOR_DOWNLOAD = (
    "Not needed. On = fetch another face detector, YuNet, from Hugging Face once (0.4 MB, into models/flashlips): it finds small "
    "faces better, and a turned face beside a frontal one. Off = never use the network: the bundled detector is used."
)


def download_input(tooltip: str) -> io.Boolean.Input:
    """Whether the network may be used."""
    return io.Boolean.Input("download", default=False, optional=True, advanced=True, tooltip=tooltip)
