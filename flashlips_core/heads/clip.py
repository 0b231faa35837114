"""Film one rendered head that says a line: the demo clip.

T frames, E expressions, S picture size in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..media import load_audio, write_video
from ..types import ClipInfo, FlashLipsError, Frame, Progress
from .mesh import Camera, HeadMesh, rotation
from .render import HeadRenderer, Look
from .skin import SkinPainter
from .speech import speech_curves

FPS = 25
BT709, LIMITED = 1, 1  # FFmpeg's AVColorSpace and AVColorRange
BLINK_S = 0.24  # down, hold and up
TONE, HAIR = np.array([222.0, 174, 148]), np.array([58.0, 40, 30])  # sRGB
VIEW_SIDE, VIEW_ABOVE_EYES = 28.0, 12.0  # cm around the resting head


def film(
    mesh: HeadMesh,
    phones: Sequence[tuple[str, float, float]],
    out: str | Path,
    audio: str | Path | None = None,
    seconds: float = 5.0,
    size: int = 512,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Write a clip of ``seconds`` at 25 fps in which the head speaks, blinks and moves a little; the seed picks its face."""
    if not phones:
        raise FlashLipsError("The list of phones is empty; give [phone, start, end] for each sound of the line.")
    num_frames = round(seconds * FPS)
    info = ClipInfo(
        path="", width=size, height=size, fps=Fraction(FPS), num_frames=num_frames, duration=Fraction(num_frames, FPS),
        time_base=Fraction(1, FPS), rotation=0, pix_fmt="yuv420p", color_range=LIMITED, colorspace=BT709,
        color_primaries=BT709, color_trc=BT709, is_variable_rate=False, audio_rate=None, audio_channels=None,
    )  # fmt: skip
    frames = _frames(mesh, phones, num_frames, size, seed, progress)
    sound = load_audio(audio) if audio is not None else None
    comment = {"comment": "ICT-FaceKit head, rendered by FlashLips"}
    write_video(out, frames, info, audio=sound, crf=17, preset="slow", metadata=comment)


def demo_look(painter: SkinPainter, rng: np.random.Generator) -> Look:
    """A plain, friendly look in soft light."""
    rows, columns = np.mgrid[-1:1:256j, -1:1:256j]
    glow = np.exp(-(((columns - 0.2) ** 2 + (rows + 0.2) ** 2) / 1.2))[..., None]
    background = np.array([62, 74, 84]) * (1 - glow) + np.array([142, 152, 156]) * glow
    return Look(
        skin=painter.paint(rng, TONE, HAIR),
        back_skin=tuple((TONE / 255) ** 2),
        hair=tuple((HAIR / 255) ** 2),
        hair_amount=0.95,
        iris=(0.10, 0.09, 0.045),
        cloth=(0.035, 0.075, 0.11),
        ambient=(0.44, 0.45, 0.47),
        light_directions=((0.55, 0.5, 0.75), (-0.8, 0.15, 0.5)),
        light_colours=((0.60, 0.57, 0.53), (0.17, 0.19, 0.23)),
        shine=0.8,
        background=background.astype(np.uint8),
    )


def _frames(
    mesh: HeadMesh, phones: Sequence, num_frames: int, size: int, seed: int, progress: Progress | None
) -> Iterator[Frame]:
    rng = np.random.default_rng(seed)
    resting = mesh.identify(rng.normal(0, 0.5, min(20, len(mesh.identity))))
    curves = speech_curves(mesh, phones, num_frames, FPS) + idle_curves(mesh, num_frames, rng)
    turns, gaze = head_motion(num_frames, rng)
    eyes = mesh.five_points(resting)[:2].mean(0)
    with HeadRenderer(mesh, size) as renderer:
        renderer.set_look(demo_look(SkinPainter(mesh, 1024), rng))
        still = Camera(np.eye(3, dtype=np.float32), 110.0)
        corners = eyes + np.array([[-VIEW_SIDE / 2, VIEW_ABOVE_EYES, 0], [VIEW_SIDE / 2, VIEW_ABOVE_EYES - VIEW_SIDE, 0]])
        box = still.project(corners).ravel()
        for i in range(num_frames):
            vertices = mesh.turn_eyes(mesh.express(resting, curves[i].clip(0, 1)), *gaze[i])
            picture = renderer.draw(vertices, Camera(rotation(*turns[i]), 110.0), box)
            yield _to_frame(picture, i)
            if progress:
                progress(i + 1, num_frames)


def idle_curves(mesh: HeadMesh, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Blinks every two to four seconds and brows that drift. -> (T, E) float32."""
    times = np.arange(num_frames) / FPS
    blink, now = np.zeros(num_frames), rng.uniform(0.8, 1.5)
    while now < times[-1]:
        blink = np.maximum(blink, np.clip(1.4 - np.abs(times - now) / (BLINK_S / 2) * 1.4, 0, 1))
        now += rng.uniform(1.8, 3.4)
    brows = 0.10 + 0.10 * np.sin(2 * np.pi * 0.31 * times + rng.uniform(0, 6))
    moving = blink[:, None] * mesh.weights(eyeBlink=1.0) + brows[:, None] * mesh.weights(browInnerUp=1.0)
    return moving + mesh.weights(mouthSmile=0.06)


def head_motion(num_frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Slow sums of sines. -> turns (T, 3) yaw, pitch, roll and gaze (T, 2) yaw, pitch, radians."""
    times = np.arange(num_frames) / FPS
    turns = np.zeros((num_frames, 3))
    for amount, rate in ((0.045, 0.23), (0.022, 0.52), (0.010, 0.97)):
        turns += amount * np.array([1.0, 0.6, 0.45]) * np.sin(2 * np.pi * rate * times[:, None] + rng.uniform(0, 6.28, 3))
    looks = np.repeat(rng.normal(0, (0.05, 0.025), (num_frames // 20 + 1, 2)), 20, axis=0)[:num_frames]
    return turns, looks - 0.6 * turns[:, :2]  # eyes stay on the camera while the head turns


def _to_frame(picture: np.ndarray, pts: int) -> Frame:
    """(S, S, 3) uint8 RGB to BT.709 planar YUV."""
    yuv = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
    height, width = picture.shape[:2]
    packed = yuv.to_ndarray()
    luma, chroma = packed[:height], packed[height:].reshape(2, height // 2, width // 2)
    return Frame((luma, chroma[0], chroma[1]), "yuv420p", pts, color_range=LIMITED, colorspace=BT709)
