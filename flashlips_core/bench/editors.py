"""``python -m flashlips_core bench --full``: how fast editors of the paper's size edit crops on this device.

Their weights are random, which does not change the speed. Files, tracking, audio and pasting are outside the timer: it runs from
crops to edited crops and their alpha, all in main memory, through the class that edits clips. References are prepared before.
"""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor, nn

from ..codec import Codec, KLCodec, TinyCodec, encode_part, load_codec
from ..editing import CropEditor
from ..models.editor_transformer import TRANSFORMER_300M, EditorTransformer
from ..models.editor_unet import UNET_250M, EditorUNet
from ..pretrained import sdxl_vae
from ..system.clock import StageClock
from ..system.machine import TOO_LATE, end_of, forget_peak, now, peak_gb
from ..system.memory import is_out_of_memory
from ..types import POSE_DIM, FlashLipsError, Progress, device_of, dtype_for

log = logging.getLogger(__name__)

PAPER = "The paper reports 109.41 (U-Net) and 66.84 (Transformer) frames per second on an H100."
STAGES = {"encode crop": "encode", "edit": "edit", "alpha": "alpha", "decode crop": "decode"}  # of ``CropEditor``
REFERENCES = 4
WARM_UP = 3  # rounds


def tiny_vae() -> nn.Module:
    """TAESDXL, with random weights, on PyTorch's default device."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny()


def bundled_codec() -> Codec:
    """With its own weights; its file is read to main memory whatever the default device is."""
    with torch.device("cpu"):
        return load_codec("bundled")


Build = Callable[[], nn.Module]
EDITORS: dict[str, Build] = {
    "U-Net, 250 M": lambda: EditorUNet(UNET_250M),
    "Transformer, 300 M": lambda: EditorTransformer(TRANSFORMER_300M),
}
CODECS: dict[str, Callable[[], Codec]] = {
    "SDXL's VAE": lambda: KLCodec(sdxl_vae()),
    "TAESDXL": lambda: TinyCodec(tiny_vae()),
    "bundled": bundled_codec,
}


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    editors: Mapping[str, Build] = field(default_factory=lambda: EDITORS)
    codecs: Mapping[str, Callable[[], Codec]] = field(default_factory=lambda: CODECS)
    crops_px: Sequence[int] = (512, 256)
    batches: Sequence[int] = (8, 1)
    rounds: int = 20  # timed ones
    warm_up: int = WARM_UP

    @property
    def count(self) -> int:
        return len(self.editors) * len(self.codecs) * len(self.crops_px) * len(self.batches)


@dataclass(frozen=True)
class Speed:
    """One editor with one codec. Without numbers where memory ran out."""

    editor: str
    codec: str
    crop_px: int
    batch: int
    frames_per_second: float | None = None  # median, from crops to edited crops in main memory
    device_frames_per_second: float | None = None  # median, whole crops decoded, nothing leaves the device
    ms_per_frame: dict[str, float] = field(default_factory=dict)  # medians of each stage of the first
    peak_gb: float | None = None
    note: str = ""


def plan_for(device: torch.device) -> Plan:
    """Everything, 20 times; on a CPU, where each takes seconds to minutes, once and frame by frame."""
    return Plan(batches=(1,), rounds=1, warm_up=0) if device.type == "cpu" else Plan()


def full_speed(
    device: torch.device | None = None,
    plan: Plan | None = None,
    progress: Progress | None = None,
    within_s: float | None = None,
) -> dict:
    """All of the plan on a device (None: the one that the product would choose), with a table for people.

    Args:
        within_s: seconds after which nothing further is begun, for machines that are lent.
    """
    device, end_s = device_of(device), end_of(within_s)
    plan = plan or plan_for(device)
    speeds = []
    for speed in _speeds(device, plan, end_s):
        speeds.append(speed)
        log.info("%s", speed)
        if progress is not None:
            progress(len(speeds), plan.count)
    conditions = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "dtype": str(dtype_for(device)).removeprefix("torch."),
        "torch": torch.__version__,
        "weights": "random, except those of the bundled codec; this does not change the speed",
        "inside the timer": "crops to the device, encode, edit, alpha, decode what changed, both back to main memory",
        "inside the timer, device alone": "encode, edit, decode whole crops; the tensors stay on the device",
        "references": f"{REFERENCES}, prepared before",
        "warm-up rounds": plan.warm_up,
        "timed rounds": plan.rounds,
        "compiled": False,
        "paper": PAPER,
    }
    return {"conditions": conditions, "speeds": [asdict(speed) for speed in speeds], "table": table(conditions, speeds)}


def table(conditions: Mapping[str, object], speeds: Sequence[Speed]) -> str:
    """The speeds in Markdown, under what they were measured in."""
    lines = [f"- {name}: {value}" for name, value in conditions.items()]
    stages = list(STAGES.values())
    times = ["frames/s", "frames/s, device alone", *(f"{stage}, ms" for stage in stages)]
    titles = ["editor", "codec", "crop px", "batch", *times, "peak GB"]
    lines += ["", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for speed in speeds:
        numbers = [speed.frames_per_second, speed.device_frames_per_second, *map(speed.ms_per_frame.get, stages), speed.peak_gb]
        shown = [speed.note, *[""] * (len(numbers) - 1)] if speed.note else ["" if n is None else f"{n:.2f}" for n in numbers]
        cells = [speed.editor, speed.codec, str(speed.crop_px), str(speed.batch), *shown]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _speeds(device: torch.device, plan: Plan, end_s: float) -> Iterator[Speed]:
    for codec_name, build_codec in plan.codecs.items():
        for editor_name, build_editor in plan.editors.items():
            networks = None
            for crop_px, batch in itertools.product(plan.crops_px, plan.batches):
                speed = Speed(editor_name, codec_name, crop_px, batch)
                if time.monotonic() >= end_s:
                    yield replace(speed, note=TOO_LATE)
                    continue
                networks = networks or (_placed_codec(build_codec, device), _placed_editor(build_editor, device))
                forget_peak(device)
                yield _within_memory(*networks, speed, device, plan)


def _placed_codec(build: Callable[[], Codec], device: torch.device) -> Codec:
    """As ``load_codec`` places it."""
    dtype = dtype_for(device)
    with device:
        codec = build()
    if dtype == torch.float16 and isinstance(codec, KLCodec):
        dtype = torch.float32  # the published weights overflow in fp16
    return codec.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)


def _placed_editor(build: Build, device: torch.device) -> nn.Module:
    """As ``load_network`` places it. A fresh editor changes nothing, and what is not changed is not decoded: this one does."""
    with device:
        editor = build()
    for parameter in editor.parameters():
        if not parameter.any():  # products with zeros take less power
            nn.init.normal_(parameter, std=0.02)
    nn.init.ones_((editor.head if isinstance(editor, EditorTransformer) else editor.conv_out).bias)
    editor = editor.requires_grad_(False).eval()
    return editor.to(device=device, dtype=dtype_for(device)).to(memory_format=torch.channels_last)


def _within_memory(codec: Codec, editor: nn.Module, speed: Speed, device: torch.device, plan: Plan) -> Speed:
    """The speed with its numbers, or with a note that memory ran out."""
    try:
        numbers = _measured(codec, editor, speed.crop_px, speed.batch, device, plan)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        numbers = {"note": "out of memory"}
    return Speed(speed.editor, speed.codec, speed.crop_px, speed.batch, **numbers)


def _measured(codec: Codec, editor: nn.Module, crop_px: int, batch: int, device: torch.device, plan: Plan) -> dict:
    generator, clock = torch.Generator().manual_seed(0), StageClock(device)
    pictures = torch.rand(REFERENCES + batch, 3, crop_px, crop_px, generator=generator) * 2 - 1
    poses = torch.randn(REFERENCES + batch, POSE_DIM, generator=generator)
    crop_editor = CropEditor(codec, editor, pictures[:REFERENCES], poses[:REFERENCES], clock=clock)
    crops, wanted = pictures[REFERENCES:].contiguous(memory_format=torch.channels_last), poses[REFERENCES:]
    seconds, stages = [], []
    for index in range(plan.warm_up + plan.rounds):
        clock.seconds.clear()
        start = now(device)
        _, alpha = crop_editor(crops, wanted)
        if index >= plan.warm_up:
            seconds.append(now(device) - start)
            stages.append(dict(clock.seconds))
    if not (alpha > 0).any():
        raise FlashLipsError("The random editor changed nothing, so nothing was decoded; this is a bug, please report it.")
    medians = {short: statistics.median(one[name] for one in stages) for name, short in STAGES.items()}
    return {
        "frames_per_second": batch / statistics.median(seconds),
        "device_frames_per_second": batch / statistics.median(_alone(crop_editor, crops, wanted, device, plan)),
        "ms_per_frame": {name: 1000 * value / batch for name, value in medians.items()},
        "peak_gb": peak_gb(device),
    }


@torch.inference_mode()
def _alone(crop_editor: CropEditor, crops: Tensor, poses: Tensor, device: torch.device, plan: Plan) -> list[float]:
    """Seconds of each round in which nothing leaves the device."""
    weight, seconds = next(crop_editor.editor.parameters()), []
    crops, poses = crops.to(weight, memory_format=torch.channels_last), poses.to(weight)
    for index in range(plan.warm_up + plan.rounds):
        start = now(device)
        edited = crop_editor.edit(encode_part(crop_editor.codec, crops, crop_editor.view), poses)
        crop_editor.codec.decode(edited)
        if index >= plan.warm_up:
            seconds.append(now(device) - start)
    return seconds
