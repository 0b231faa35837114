"""What nodes say about their work: a stage with its count and the time left, and what became of a clip. No ComfyUI in here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

SURE_S = 2.0  # of a stage's work, before a time left is worth saying
SMALLEST_S = 0.05  # differences below a frame or two are none


def status(stage: str, done: int, total: int, elapsed_s: float) -> str:
    """One line while a stage runs: "Editing frames: 40 of 104, about 12 s left"."""
    if total <= 1:
        return f"{stage} ..."
    line = f"{stage}: {min(done, total)} of {total}"
    if done < 1 or done >= total or elapsed_s < SURE_S:
        return line
    return f"{line}, about {seconds(elapsed_s * (total - done) / done)} left"


def seconds(value: float | Fraction) -> str:
    """A duration for people: "4.2 s", "35 s", "2 min 10 s", "1 h 5 min"."""
    value = float(value)
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min" + (f" {rest} s" if rest else "")
    hours, minutes = divmod(math.ceil(value / 60), 60)
    return f"{hours} h" + (f" {minutes} min" if minutes else "")


def count(number: int, what: str) -> str:
    """ "1 frame", "2 frames"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def dubbed(frames: int, without_face: int, voice_s: float | Fraction | None) -> str:
    """What a dub has made: "104 frames, 2 without a face, voice 4.2 s"."""
    parts = [count(frames, "frame"), f"{without_face} without a face" if without_face else "each with the face"]
    return ", ".join(parts + ([f"voice {seconds(voice_s)}"] if voice_s is not None else []))


def fitted(picture_s: float | Fraction, voice_s: float | Fraction, result_s: float | Fraction, mode: str, num_frames: int) -> str:
    """What was cut or lengthened so that picture and voice end together; "" where nothing was."""
    picture, voice, result = float(picture_s), float(voice_s), float(result_s)
    said = []
    if num_frames == 1 and result > picture + SMALLEST_S:
        said.append(f"Still held for {seconds(result)}, as long as the voice.")
    elif result > picture + SMALLEST_S:
        how = {"loop": "begins again", "hold": "stands still"}.get(mode, "goes back and forth")
        said.append(f"Picture {how} from {seconds(picture)} to {seconds(result)}, with the voice.")
    elif result < picture - SMALLEST_S:
        said.append(f"Picture cut from {seconds(picture)} to {seconds(result)}, with the voice.")
    if voice > result + SMALLEST_S:
        said.append(f"Voice cut from {seconds(voice)} to {seconds(result)}, with the picture; 'length' auto keeps it.")
    elif voice < result - SMALLEST_S:
        said.append(f"Voice ends at {seconds(voice)}, then silence up to {seconds(result)}.")
    return " ".join(said)


def tracked(present: Sequence[bool], scenes: int, fps: float | Fraction) -> str:
    """What a track holds: "104 frames, 2 without the face (the first at 3.20 s), left as they are, 2 scenes"."""
    absent = [index for index, is_there in enumerate(present) if not is_there]
    parts = [count(len(present), "frame")]
    if len(absent) == len(present):
        parts.append("the face is in none of them")
    elif absent:
        parts.append(f"{len(absent)} without the face (the first at {absent[0] / float(fps):.2f} s), left as they are")
    else:
        parts.append("each with the face")
    return ", ".join(parts + ([count(scenes, "scene")] if scenes > 1 else []))
