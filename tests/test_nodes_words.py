"""What nodes say: a stage with the time left, what a dub has made, what was cut or lengthened. Without ComfyUI."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / "nodes" / "words.py"
spec = importlib.util.spec_from_file_location("flashlips_words", PATH)
words = importlib.util.module_from_spec(spec)
spec.loader.exec_module(words)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0.0 s"), (4.24, "4.2 s"), (Fraction(42, 5), "8.4 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min"),
     (130, "2 min 10 s"), (3599.9, "1 h"), (3901, "1 h 6 min")],
)  # fmt: skip
def test_durations_are_said_as_people_say_them(seconds, said):
    assert words.seconds(seconds) == said


def test_a_stage_says_its_count_and_after_a_while_the_time_left():
    assert words.status("Editing frames", 0, 0, 0.0) == "Editing frames ..."
    assert words.status("Editing frames", 4, 104, 1.0) == "Editing frames: 4 of 104"
    assert words.status("Editing frames", 26, 104, 4.0) == "Editing frames: 26 of 104, about 12 s left"
    assert words.status("Editing frames", 104, 104, 16.0) == "Editing frames: 104 of 104"
    assert words.status("Editing frames", 120, 104, 16.0) == "Editing frames: 104 of 104"  # the container's count was a guess


def test_a_dub_ends_in_one_line():
    assert words.dubbed(104, 2, 4.2) == "104 frames, 2 without a face, voice 4.2 s"
    assert words.dubbed(1, 0, None) == "1 frame, each with the face"


@pytest.mark.parametrize(
    ("picture", "voice", "result", "mode", "num_frames", "said"),
    [
        (4.0, 4.0, 4.0, "auto", 100, []),
        (4.0, 4.03, 4.04, "auto", 100, []),
        (10.0, 4.2, 4.2, "auto", 250, ["Picture cut from 10 s to 4.2 s"]),
        (4.0, 10.0, 4.0, "cut", 100, ["Voice cut from 10 s to 4.0 s", "'length' auto"]),
        (4.0, 10.0, 10.0, "auto", 100, ["Picture goes back and forth from 4.0 s to 10 s"]),
        (4.0, 10.0, 10.0, "loop", 100, ["begins again"]),
        (4.0, 10.0, 10.0, "hold", 100, ["stands still"]),
        (0.04, 6.0, 6.0, "auto", 1, ["Still held for 6.0 s"]),
        (10.0, 4.0, 10.0, "silence", 250, ["Voice ends at 4.0 s, then silence up to 10 s"]),
        (4.0, 10.0, 4.0, "silence", 100, ["Voice cut"]),
    ],
)
def test_what_was_cut_or_lengthened_is_said(picture, voice, result, mode, num_frames, said):
    text = words.fitted(picture, voice, result, mode, num_frames)
    assert bool(text) == bool(said) and all(part in text for part in said)


def test_a_track_says_where_the_face_is_missed():
    assert words.tracked([True] * 104, 1, 25) == "104 frames, each with the face"
    assert words.tracked([True, True, False, False], 2, 25) == (
        "4 frames, 2 without the face (the first at 0.08 s), left as they are, 2 scenes"
    )
    assert "none of them" in words.tracked([False, False], 1, 25)
