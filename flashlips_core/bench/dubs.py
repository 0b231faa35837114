"""``python -m flashlips_core bench``: how fast, how big, how much memory; each number says what is inside it.

A timed run is file to file: reading, tracking, audio, the networks, pasting, x264 and the container, but not loading the models.
Editors of the paper's size, of which no weights are bundled, are timed without files (``editors``).
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..measures import flops_of, peak_resident_bytes, resident_bytes
from ..media import probe
from ..pipeline import LipSync
from ..system.children import end_with_parent
from ..types import POSE_DIM, FlashLipsError, Progress, device_of, dtype_for
from . import rivals, stages
from .long_clip import write_long_clip, write_long_voice

DEMO = Path(__file__).parents[1] / "demo"


def demo_clip() -> Path:
    """The bundled video."""
    return _demo_file("face.mp4")


def demo_voice() -> Path:
    """The bundled voice."""
    return _demo_file("voice.*")


def timed_runs(lipsync: LipSync, video: Path, audio: Path, repeats: int, batch: int, progress: Progress | None = None) -> dict:
    """Dub ``video`` with ``audio`` once to warm up, then ``repeats`` times. Medians over the timed runs."""
    seconds, runs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(repeats + 1):
            start = time.perf_counter()
            report = lipsync.dub(video, audio, Path(folder) / f"{index}.mp4", batch=batch)
            if index:
                seconds.append(time.perf_counter() - start)
                runs.append(report.seconds)
            if progress is not None:
                progress(index + 1, repeats + 1)
    info, frames = probe(video), report.frames
    rows = stages.stage_rows(runs, frames, stages.work_of(lipsync, len(report.references)))
    peak = peak_resident_bytes()
    return {
        "video": f"{info.width}x{info.height}, {frames} frames",
        "crop px": lipsync.crop_px,
        "inside the timer": "file to file: read, track, audio to poses, networks, paste, encode, mux; not loading the models",
        "warm-up runs": 1,
        "timed runs": repeats,
        "batch": batch,
        "frames per second, median": frames / statistics.median(seconds),
        "frames per second, lowest and highest": [frames / max(seconds), frames / min(seconds)],
        "seconds, median": statistics.median(seconds),
        "peak GB of the process": None if peak is None else peak / 1e9,
        "stages": stages.as_dicts(rows),
    }


@dataclass(frozen=True)
class Memory:
    """What a process held while it dubbed a clip, in bytes; None where the system cannot tell."""

    peak: int | None
    loaded: int | None  # with Python and all models, before the dub
    growth: float | None  # per minute of the clip, over the last three quarters of its frames

    def in_mb(self, minutes: float) -> dict[str, int | None]:
        """For people: labelled with the clip's length."""
        above = None if self.peak is None or self.loaded is None else self.peak - self.loaded
        values = {"peak": self.peak, "peak above the loaded models": above, "growth per minute": self.growth}
        return {f"MB, {minutes:g} min: {name}": None if v is None else round(v / 1e6) for name, v in values.items()}


@dataclass
class MemoryTrace:
    """Frames and bytes as a dub goes on; its :meth:`progress` is the dub's."""

    samples: list[tuple[int, int]] = field(default_factory=list)

    def progress(self, done: int, total: int) -> None:
        """Look once a frame."""
        is_new = not self.samples or done > self.samples[-1][0]
        if is_new and (held := resident_bytes()) is not None:
            self.samples.append((done, held))

    def growth(self, fps: float) -> float | None:
        """Bytes per minute of the clip, by a straight line through the last three quarters of the second pass."""
        seen = np.array(self.samples, np.float64).reshape(-1, 2)
        last = seen[seen[:, 0] > 5 / 8 * seen[:, 0].max(initial=0)]  # the first half is tracking
        return float(np.polyfit(last[:, 0], last[:, 1], 1)[0] * fps * 60) if len(last) > 2 else None


def traced_dub(lipsync: LipSync, video: str | Path, audio: str | Path, out: str | Path, batch: int) -> Memory:
    """Dub, and say what this process held."""
    lipsync.load_all()
    loaded, trace = resident_bytes(), MemoryTrace()
    report = lipsync.dub(video, audio, out, batch=batch, progress=trace.progress)
    return Memory(peak_resident_bytes(), loaded, trace.growth(report.fps))


def memory_of_dub(video: Path, audio: Path, batch: int, models: Path | None = None) -> Memory:
    """What a fresh process holds that loads the models and dubs ``video``."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (str(video), str(audio), str(Path(folder) / "out.mp4"), batch, models, results)
        child = context.Process(target=_dub_and_report, args=arguments, daemon=True)
        child.start()
        try:
            child.join()
        finally:
            child.kill()  # nothing happens to one that has ended
        if child.exitcode or results.empty():
            raise FlashLipsError(f"The dub was killed (exit code {child.exitcode}); if memory ran out, try fewer minutes.")
        memory, message = results.get()
        if message:
            raise FlashLipsError(message)
        return memory


def long_clip_memory(minutes: float, face: Path, voice: Path, batch: int, models: Path | None = None) -> dict:
    """Memory on a synthetic 1080p clip of ``minutes``: constant in length where it does not grow."""
    result: dict = {"clip": "the face scaled to 1920x1080, repeated", "includes": "Python, PyTorch, all models; a new process"}
    with tempfile.TemporaryDirectory() as folder:
        seconds = Fraction(minutes).limit_denominator(600) * 60
        video = write_long_clip(face, Path(folder) / "long.mp4", seconds)
        sound = write_long_voice(voice, Path(folder) / "long.wav", seconds)
        return result | memory_of_dub(video, sound, batch, models).in_mb(minutes)


def network_sizes() -> list[dict]:
    """Parameters and FLOPs per frame of every preset, counted on the meta device (1 multiply-add = 2)."""
    rows = []
    for name, (build, prepared) in _presets().items():
        with torch.device("meta"), torch.inference_mode():
            network = build().eval()
            flops = flops_of(prepared(network))
        rows.append({"network": name, "parameters": sum(p.numel() for p in network.parameters()), "GFLOP": flops / 1e9})
    return rows


def conditions() -> dict:
    """The machine and the software, and how busy the one was: times of one run can be compared with each other only."""
    loads = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "busy with others, processes": None if loads is None else round(loads, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "precision": str(dtype_for(device_of(None))).removeprefix("torch."),
        "compiled": False,
    }


def processor() -> str:
    """Its name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # only Linux has it
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def bench(
    video: Path | None,
    audio: Path | None,
    models: Path | None,
    repeats: int,
    batch: int,
    long_minutes: float | None,
    has_rivals: bool = False,
    editors: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict:
    """Measure everything but the editors of the paper's size; ``progress`` counts the timed runs.

    Args:
        video, audio: what is dubbed; None: the bundled clip and voice.
        models: folder with <role>.safetensors; None: the bundled ones.
        repeats: timed dubs after one warm-up; 0 skips them.
        batch: frames edited at once.
        long_minutes: also report the peak memory on a 1080p clip this long.
        has_rivals: also time the networks of other methods, one frame each.
        editors: which are timed, by name or file; none: the one of ``models``, else the default.
    """
    video, audio = video or demo_clip(), audio or demo_voice()
    result: dict = {"conditions": conditions(), "networks": network_sizes()}
    if repeats:
        chosen = {name: LipSync.load(models, editor=name) for name in editors} or {"default": LipSync.load(models)}
        result["end to end"] = {
            name: timed_runs(lipsync, video, audio, repeats, batch, progress) for name, lipsync in chosen.items()
        }
    if has_rivals:
        result["rivals"] = rivals.as_dicts(rivals.side_by_side(rivals.methods(), progress=progress))
    if long_minutes:
        result["long clip"] = long_clip_memory(long_minutes, video, audio, batch, models)
    return result


Work = Callable[[], object]


def _presets() -> dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Work]]]:
    """Name -> (build, what one frame costs); work done once per clip is done before. Latents are crop px / 8."""
    from ..models.codec_mini import MiniCodec
    from ..models.editor_transformer import TRANSFORMER_300M, EditorTransformer
    from ..models.editor_unet import UNET_250M, UNET_MINI, UNET_MINI_384, EditorUNet
    from ..models.lip_encoder import LIP_ENCODER_MINI, LIP_ENCODER_RESNET34, LipEncoder
    from ..models.pose_transformer import POSE_150M, POSE_MINI, PoseTransformer

    picture = torch.zeros(1, 3, 256, 256, device="meta")
    return {
        "U-Net editor, 512 px, 4 references": (lambda: EditorUNet(UNET_250M), _edit(64)),
        "Transformer editor, 512 px, 4 references": (lambda: EditorTransformer(TRANSFORMER_300M), _edit(64)),
        "bundled editor, 384 px, 4 references": (lambda: EditorUNet(UNET_MINI_384), _edit(48)),
        "bundled-fast editor, 256 px, 4 references": (lambda: EditorUNet(UNET_MINI), _edit(32)),
        "bundled codec, 256 px, both ways": (MiniCodec, lambda codec: lambda: codec.decode(codec.encode(picture))),
        "lip encoder ResNet-34": (lambda: LipEncoder(LIP_ENCODER_RESNET34), lambda encoder: lambda: encoder(picture)),
        "bundled lip encoder": (lambda: LipEncoder(LIP_ENCODER_MINI), lambda encoder: lambda: encoder(picture)),
        "pose transformer, one step of 25 frames": (lambda: PoseTransformer(POSE_150M), _velocity),
        "bundled pose transformer, one step of 25 frames": (lambda: PoseTransformer(POSE_MINI), _velocity),
    }


def _edit(cells: int, references: int = 4) -> Callable[[nn.Module], Work]:
    def prepared(editor: nn.Module) -> Work:
        context = editor.prepare_references(torch.zeros(1, references, 4, cells, cells))
        return lambda: editor(torch.zeros(1, 4, cells, cells), context, torch.zeros(1, POSE_DIM))

    return prepared


def _velocity(network: nn.Module) -> Work:
    audio = torch.zeros(1, 25, network.config.audio_dim)
    return lambda: network(torch.zeros(1, 25, POSE_DIM), torch.zeros(1), audio, torch.zeros(1, 4, POSE_DIM))


def _dub_and_report(
    video: str, audio: str, out: str, batch: int, models: Path | None, results: multiprocessing.SimpleQueue
) -> None:
    end_with_parent()
    try:
        results.put((traced_dub(LipSync.load(models), video, audio, out, batch), ""))
    except FlashLipsError as error:
        results.put((None, str(error)))


def _demo_file(pattern: str) -> Path:
    found = sorted(DEMO.glob(pattern))
    if not found:
        raise FlashLipsError(f"The bundled {pattern} is missing; reinstall, or name your own files with --video and --audio.")
    return found[0]
