"""What Compare Video's player computes, run by node: frames and times, catching up, places, what a pointer and a key mean."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

NODE = shutil.which("node")
MATHS = Path(__file__).resolve().parents[1] / "js" / "compare_math.js"
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")


def computed(expression: str):
    """The value of a JavaScript expression in which the module's functions are known."""
    code = f"const m = await import({json.dumps(MATHS.as_uri())}); console.log(JSON.stringify((m => {expression})(m)))"
    done = subprocess.run([NODE, "--input-type=module", "-e", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_frames_time_shows_that_frame_at_any_rate():
    rates = [24, 25, 30000 / 1001, 50, 60000 / 1001]
    loop = f"{rates}.every(fps => [...Array(20000).keys()].every(i => m.frameAt(m.timeOf(i, fps), fps, 20000) === i))"
    assert computed(loop)
    assert computed("[m.frameAt(-1, 25, 9), m.frameAt(99, 25, 9), m.frameAt(1, 25, 0), m.frameAt(0.04, 25, 9)]") == [0, 8, 0, 1]


def test_a_range_is_played_again_from_its_start_and_shows_both_its_ends():
    asked = "[4, 5, 9, 10].map(i => m.looped(i, {start: 5, stop: 9}))"
    assert computed(asked) == [5, None, None, 5]


def test_a_video_behind_runs_a_little_faster_and_one_far_off_jumps():
    near, behind, ahead, far = computed("[[1, 1.001], [1.08, 1], [1, 1.08], [3, 1]].map(([a, b]) => m.correction(a, b, 25))")
    assert near == {"jump": False, "rate": 1} and far["jump"]
    assert not behind["jump"] and not ahead["jump"]
    assert 1 < behind["rate"] <= 1.1 and 0.9 <= ahead["rate"] < 1


def test_pictures_keep_their_shape_inside_the_canvas_and_never_overlap_side_by_side():
    for aspect in (16 / 9, 1, 9 / 16):
        for width, height in ((400, 300), (300, 400), (900, 200)):
            first, second = computed(f"m.places('side', {aspect}, {width}, {height})")
            for box in (first, second):
                assert box["width"] / box["height"] == pytest.approx(aspect)
                assert box["x"] >= -1e-6 and box["x"] + box["width"] <= width + 1e-6
                assert box["y"] >= -1e-6 and box["y"] + box["height"] <= height + 1e-6
            assert first["x"] + first["width"] <= second["x"] or first["y"] + first["height"] <= second["y"]
    assert computed("m.places('wipe', 1, 400, 300)") == [{"x": 50, "y": 0, "width": 300, "height": 300}] * 2


def test_the_mouth_is_shown_as_a_square_that_stays_in_the_frame():
    wide = computed("m.shownPart({x: 0.5, y: 0.6, side: 0.2}, 16 / 9)")
    assert (wide["width"], wide["height"]) == (pytest.approx(0.2), pytest.approx(0.2 * 16 / 9))  # a square in pixels
    assert wide["x"] == pytest.approx(0.4)
    corner = computed("m.shownPart({x: 0, y: 1, side: 0.2}, 1)")
    assert corner == {"x": 0, "y": pytest.approx(0.8), "width": 0.2, "height": 0.2}
    assert computed("m.shownPart(null, 1)") == {"x": 0, "y": 0, "width": 1, "height": 1}


def test_the_mouth_of_a_frame_is_the_one_sent_for_it_or_the_last():
    assert computed("[0, 3, 99].map(i => m.mouthAt([[0, 0, 1], [1, 1, 1]], 3, i).x)") == [0, 1, 1]
    assert computed("m.mouthAt([], 1, 0)") is None


def test_the_wipes_line_is_taken_near_it_and_nowhere_else():
    box = "{x: 100, y: 0, width: 200, height: 100}"
    hits = computed(f"[[200, 50], [213, 50], [215, 50], [200, -5]].map(([x, y]) => m.isOnLine(x, y, 0.5, {box}))")
    assert hits == [True, True, False, False]
    assert computed("[50, 200, 900].map(x => m.shareAt(x, {x: 100, y: 0, width: 200, height: 1}))") == [0, 0.5, 1]


def test_keys_mean_the_same_in_either_case_and_others_are_left_alone():
    assert computed("[' ', 'ArrowLeft', 'Z', 'z', 'q', 'Escape'].map(m.actionOf)") == ["play", "back", "zoom", "zoom", None, None]


def test_the_label_counts_frames_from_0():
    assert computed("m.label(12, 104, 25)") == "12 / 103   0.48 s"
