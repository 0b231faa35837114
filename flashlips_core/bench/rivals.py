"""What a frame costs in the networks that a user would run instead, rebuilt at their public sizes with random weights.

Speed does not depend on the weights. Each network runs once or a few times on the CPU, and its time is multiplied by how often a
frame needs it, as ours are: one frame at a time, in fp32, eager. Times are of the processor, all threads together, so that what
else the machine does hardly matters. Face detection, files and blending are left out, ours too.
"""

from __future__ import annotations

import functools
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ..codec import CELL_PX
from ..measures import flops_of
from ..pipeline import LipSync
from ..types import POSE_DIM, Progress
from .editors import sdxl_vae
from .wav2lip import Wav2Lip

LONG_S = 2.0  # a network that takes longer is timed once
WHISPER_FRAMES = 30 * 25  # Whisper hears 30 s at once
# Of Stable Diffusion 1.5; its VAE has the layers of SDXL's
SD15 = dict(
    block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, attention_head_dim=8, cross_attention_dim=384, out_channels=4,
    down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"), up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
)  # fmt: skip


@dataclass(frozen=True)
class Network:
    """One network of a method and how often a frame needs it."""

    name: str
    build: Callable[[], nn.Module]
    run: Callable[[nn.Module], object]
    per_frame: float

    @property
    def work(self) -> tuple[Callable, Callable]:
        """The same for the same work of another method."""
        return self.build, self.run


@dataclass(frozen=True)
class Method:
    """What somebody would run instead."""

    name: str
    crop_px: int
    networks: Sequence[Network]
    note: str = ""


@dataclass(frozen=True)
class Cost:
    """What one frame costs a method."""

    name: str
    crop_px: int
    parameters: int
    gflop: float
    ms: float
    timed: int  # runs of each network at least, whose median was taken
    note: str
    parts: dict[str, float]  # ms a frame of each network


OURS = "ours"  # how the names of our own begin


def methods() -> list[Method]:
    """Ours, the rivals, and the paper's own configuration."""
    return [
        _ours("bundled", 384),
        _ours("bundled-fast", 256),
        Method("Wav2Lip", 96, [Network("generator", Wav2Lip, _wav2lip, 1)]),
        Method(
            "MuseTalk 1.5", 256,
            [
                Network("U-Net, one step", lambda: _sd_unet(8), _step(8, 32), 1),
                Network("SD VAE, encode masked frame and reference", sdxl_vae, _encode(256), 2),
                Network("SD VAE, decode", sdxl_vae, _decode(256), 1),
                Network("Whisper tiny", _whisper, _hear, 1 / WHISPER_FRAMES),
            ],
        ),
        Method(
            "LatentSync 1.6", 512,
            [
                Network("U-Net, 20 steps with guidance", lambda: _sd_unet(13), _step(13, 64), 20 * 2),
                Network("SD VAE, encode masked frame and reference", sdxl_vae, _encode(512), 2),
                Network("SD VAE, decode", sdxl_vae, _decode(512), 1),
                Network("Whisper tiny", _whisper, _hear, 1 / WHISPER_FRAMES),
            ],
            "without its layers over time, so a lower bound; one step is timed and multiplied by 40",
        ),
        Method(
            "the FlashLips paper's U-Net", 512,
            [
                Network("U-Net editor", _paper_editor, _paper_edit, 1),
                Network("SDXL VAE, encode frame and reference", sdxl_vae, _encode(512), 2),
                Network("SDXL VAE, decode", sdxl_vae, _decode(512), 1),
            ],
            "nothing cached",
        ),
    ]  # fmt: skip


def side_by_side(wanted: Sequence[Method], runs: int = 5, progress: Progress | None = None) -> list[Cost]:
    """Time every method's networks one after another; each lives only while it is timed.

    Args:
        runs: of a network after one to warm up; those that take more than 2 s run once, without.
    """
    flops_of(lambda: nn.Linear(1, 1)(torch.zeros(1, 1)))  # what the counter imports at its first use takes seconds
    found, known = [], {}
    for done, method in enumerate(wanted, start=1):
        for network in method.networks:
            if network.work not in known:
                known[network.work] = _measured(network, runs)
        found.append(_cost(method, [known[network.work] for network in method.networks]))
        if progress is not None:
            progress(done, len(wanted))
    return found


@dataclass(frozen=True)
class _Run:
    """One run of a network."""

    parameters: int
    gflop: float
    seconds: float
    timed: int


def _measured(network: Network, runs: int) -> _Run:
    built = network.build().requires_grad_(False).eval()
    work = functools.partial(network.run, built)
    flops, seconds = _counted(work)
    is_long = seconds > LONG_S
    if not is_long:
        seconds = statistics.median(_seconds(work) for _ in range(runs))
    size = sum(p.numel() for p in built.parameters())
    del built, work
    gc.collect()
    return _Run(size, flops / 1e9, seconds, 1 if is_long else runs)


def _cost(method: Method, runs: Sequence[_Run]) -> Cost:
    sizes = {network.build: run.parameters for network, run in zip(method.networks, runs, strict=True)}  # a VAE counts once
    parts = {n.name: 1000 * n.per_frame * run.seconds for n, run in zip(method.networks, runs, strict=True)}
    gflop = sum(n.per_frame * run.gflop for n, run in zip(method.networks, runs, strict=True))
    timed = min(run.timed for run in runs)
    return Cost(method.name, method.crop_px, sum(sizes.values()), gflop, sum(parts.values()), timed, method.note, parts)


def _counted(work: Callable[[], object]) -> tuple[int, float]:
    """FLOPs, and seconds of the processor."""
    started = time.process_time()
    return flops_of(work), time.process_time() - started


@torch.inference_mode()
def _seconds(work: Callable[[], object]) -> float:
    """Of the processor, all threads together."""
    started = time.process_time()
    work()
    return time.process_time() - started


def table(costs: Sequence[dict]) -> str:
    """Markdown: how many times as long as ours each method's networks take."""
    ours = [cost for cost in costs if cost["name"].startswith(OURS)]
    titles = ["method", "crop px", "parameters", "GFLOP a frame", *(f"times {cost['name']}" for cost in ours), "note"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for cost in costs:
        ratios = [f"{cost['ms'] / own['ms']:.3g}" for own in ours]
        size, gflop = f"{cost['parameters'] / 1e6:.3g} M", f"{cost['gflop']:.3g}"
        lines.append(f"| {' | '.join([cost['name'], str(cost['crop_px']), size, gflop, *ratios, cost['note']])} |")
    return "\n".join(lines)


def as_dicts(costs: Sequence[Cost]) -> list[dict]:
    """For JSON."""
    return [asdict(cost) for cost in costs]


# ---- our networks ----------------------------------------------------------------------------------------------------------


def _ours(name: str, crop_px: int) -> Method:
    """A bundled editor and its codec: the window around the mouth encoded, edited and decoded, whole."""
    cells = crop_px // CELL_PX
    window = LipSync.load(device="cpu", editor=name).editor.view_slices((cells, cells))
    height, width = (part.stop - part.start for part in window)
    pixels, latents = (CELL_PX * height, CELL_PX * width), (height, width)

    def codec() -> nn.Module:
        return LipSync.load(device="cpu", editor=name).codec

    def edit(editor: nn.Module) -> Tensor:
        return editor(torch.zeros(1, 4, cells, cells), context(editor), torch.zeros(1, POSE_DIM))

    @functools.cache
    def context(editor: nn.Module) -> object:  # once per clip
        return editor.prepare_references(torch.zeros(1, editor.num_references, 4, cells, cells))

    networks = [
        Network("encode", codec, lambda network: network.encode(torch.zeros(1, 3, *pixels)), 1),
        Network("edit", lambda: LipSync.load(device="cpu", editor=name).editor, edit, 1),
        Network("decode", codec, lambda network: network.decode(torch.zeros(1, 4, *latents)), 1),
    ]
    return Method(f"{OURS}, {name}", crop_px, networks)


# ---- their networks --------------------------------------------------------------------------------------------------------


def _sd_unet(channels: int) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(in_channels=channels, **SD15)


def _step(channels: int, cells: int) -> Callable[[nn.Module], Tensor]:
    """One step on one frame, beside the 50 rows of Whisper's features that are around it."""
    return lambda unet: unet(torch.zeros(1, channels, cells, cells), torch.zeros(1), torch.zeros(1, 50, 384)).sample


@functools.cache
def _encode(size: int) -> Callable[[nn.Module], Tensor]:
    return lambda vae: vae.encode(torch.zeros(1, 3, size, size)).latent_dist.mode()


@functools.cache
def _decode(size: int) -> Callable[[nn.Module], Tensor]:
    return lambda vae: vae.decode(torch.zeros(1, 4, size // 8, size // 8)).sample


def _whisper() -> nn.Module:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder(WhisperConfig(d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536))


def _hear(encoder: nn.Module) -> Tensor:
    return encoder(torch.zeros(1, 80, 3000)).last_hidden_state


def _wav2lip(generator: nn.Module) -> Tensor:
    return generator(torch.zeros(1, 1, 80, 16), torch.zeros(1, 6, 96, 96))


def _paper_editor() -> nn.Module:
    from ..models.editor_unet import UNET_250M, EditorUNet

    return EditorUNet(UNET_250M)


def _paper_edit(editor: nn.Module) -> Tensor:
    context = editor.prepare_references(torch.zeros(1, 1, 4, 64, 64))
    return editor(torch.zeros(1, 4, 64, 64), context, torch.zeros(1, POSE_DIM))
