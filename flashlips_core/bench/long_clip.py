"""Long synthetic clips for measuring memory: one short face clip scaled to 1080p and repeated without decoding it again."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..media import load_audio
from ..media.pyav import fraction

WIDTH, HEIGHT = 1920, 1080


def write_long_clip(face: str | Path, out: str | Path, seconds: Fraction) -> Path:
    """Write ``seconds`` of 1920x1080 H.264: the face clip fitted to the height, repeated packet by packet."""
    out = Path(out)
    unit = out.with_name(out.stem + "-unit.mp4")
    num_frames, fps = _write_unit(face, unit)
    repeats = max(1, -(-int(seconds * fps) // num_frames))
    with av.open(str(out), "w") as target:
        stream = None
        for repeat in range(repeats):
            with av.open(str(unit)) as source:
                picture = source.streams.video[0]
                if stream is None:
                    stream = target.add_stream_from_template(picture)
                step = int(1 / (fps * fraction(picture.time_base)))
                for packet in source.demux(picture):
                    if packet.dts is None:  # the empty packet that ends a stream
                        continue
                    packet.pts += repeat * num_frames * step
                    packet.dts += repeat * num_frames * step
                    packet.stream = stream
                    target.mux(packet)
    unit.unlink()
    return out


def write_long_voice(voice: str | Path, out: str | Path, seconds: Fraction) -> Path:
    """Write ``seconds`` of the voice, repeated, as a 16-bit mono wave file."""
    audio = load_audio(voice)
    pcm = (audio.samples.mean(0).clamp(-1, 1).numpy() * 32767).astype(np.int16)
    left = int(seconds * audio.sample_rate)
    with wave.open(str(out), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(audio.sample_rate)
        while left > 0:
            file.writeframes(pcm[:left].tobytes())
            left -= len(pcm)
    return Path(out)


def _write_unit(face: str | Path, out: Path) -> tuple[int, Fraction]:
    """One pass of the clip at 1080p, without frames that depend on later ones. Returns its number of frames and their rate."""
    count = 0
    with av.open(str(face)) as source, av.open(str(out), "w") as target:
        picture = source.streams.video[0]
        fps = fraction(picture.average_rate)
        stream = target.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "23", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in source.decode(picture):
            scale = min(WIDTH / frame.width, HEIGHT / frame.height)
            width, height = (round(side * scale / 2) * 2 for side in (frame.width, frame.height))
            fitted = frame.reformat(width=width, height=height, format="yuv420p").to_ndarray()
            target.mux(stream.encode(_centred(fitted, width, height, count)))
            count += 1
        target.mux(stream.encode(None))
    return count, fps


def _centred(yuv: np.ndarray, width: int, height: int, pts: int) -> av.VideoFrame:
    """A planar 4:2:0 picture (height * 3/2, width) in the middle of a grey one of 1080p."""
    canvas = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
    top, left = (HEIGHT - height) // 4 * 2, (WIDTH - width) // 4 * 2
    canvas[top : top + height, left : left + width] = yuv[:height]
    for index in (0, 1):  # U and V lie below, as planes of half the width and height
        plane = canvas[HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2)[index]
        part = yuv[height:].reshape(2, height // 2, width // 2)[index]
        plane[top // 2 : (top + height) // 2, left // 2 : (left + width) // 2] = part
    frame = av.VideoFrame.from_ndarray(canvas, format="yuv420p")
    frame.pts = pts
    return frame
