"""The timeline's JavaScript: its operations equal Python's, and time, hit tests and undo do what they say. Without ComfyUI."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import run_in_node, run_in_page

from flashlips_core.loading import load_network
from flashlips_core.poses.operations import OPERATIONS, Surroundings, apply_operations, from_json
from flashlips_core.poses.shapes import NAMED, NAMES, shape
from flashlips_core.poses.timeline import heard_by, heard_in, timeline
from flashlips_core.types import AudioFeatures, LipPoses

FRAMES, REST = 60, torch.linspace(-1, 1, 12)
SPEECH = AudioFeatures(
    torch.zeros(120, 4), Fraction(50), "log-mel", torch.cat([torch.full((60,), -20.0), torch.full((60,), -90)])
)
LOCALES = Path(__file__).resolve().parents[1] / "locales"


@pytest.fixture
def script(request, tmp_path):
    """``script(code, given)``: by node, or in Chromium where there is none."""
    node = shutil.which("node")
    if node:
        return lambda code, given=None: run_in_node(node, tmp_path, code, given)
    page = request.getfixturevalue("page")
    return lambda code, given=None: run_in_page(page, code, given)


def track(frames: int = FRAMES) -> LipPoses:
    return LipPoses(torch.randn(frames, 12, generator=torch.Generator().manual_seed(0)), Fraction(25))


def sent(poses: LipPoses, speech: AudioFeatures | None = SPEECH) -> dict:
    """What a run sends, through its JSON."""
    heard = None if speech is None else heard_by(speech)
    return json.loads(json.dumps(timeline(poses, Surroundings(REST, features=speech), heard, speech)))


APPLY = """
const {applied, parse} = await load("timeline_operations.js"), {unpacked} = await load("timeline_data.js");
const track = unpacked(given.file), {values, unseen} = applied(track, parse(given.text).items);
return {values: [...values], unseen};
"""


@pytest.mark.parametrize(
    "items",
    [
        [],
        [{"op": "gain", "expression": 1.5, "mouth": 0.5, "start": 10, "stop": 30, "fade": 4}],
        [{"op": "smooth", "deviation": 2.5}],
        [{"op": "smooth", "deviation": 0.01}],
        [{"op": "shift", "frames": -1.25, "start": 5, "stop": 40, "fade": 2.5}],
        [{"op": "shift", "frames": 100}],
        [{"op": "hold", "start": 10, "stop": 20, "fade": 3}, {"op": "hold", "start": 30, "stop": 33, "frame": 2}],
        [{"op": "keys", "dimension": 3, "points": [[5, 0.5], [12, -1], [50, 2]]}, {"op": "keys"}],
        [{"op": "rest", "amount": 0.7, "start": 20, "stop": None}],
        *([{"op": "draw", "curve": name, "points": [[5, 0.1], [20, 0.4]], "start": 5, "stop": 21, "fade": 2}] for name in NAMED),
        [{"op": "draw", "curve": "number 11", "points": [[0, 2]]}, {"op": "draw"}],
        [{"op": "copy", "start": 20, "stop": 30, "source": 3, "fade": 2}, {"op": "copy", "source": 55}],
        [{"op": "gate"}],
        [{"op": "gain", "mouth": 2}, {"op": "shift", "frames": 3}, {"op": "rest", "stop": 20}, {"op": "smooth"}],
    ],
)
def test_the_browser_shows_the_poses_that_python_makes(items: list, script) -> None:
    poses, text = track(), json.dumps(items)
    made = script(APPLY, {"file": sent(poses), "text": text})
    expected = apply_operations(poses, from_json(text), Surroundings(REST, features=SPEECH)).values
    assert made["unseen"] == []
    assert np.allclose(np.reshape(made["values"], (FRAMES, 12)), expected.numpy(), atol=0.01)  # the gate is sent in 255 steps


def test_what_the_browser_cannot_apply_is_left_to_the_run_and_said(script) -> None:
    items = [{"op": "mix"}, {"op": "rest", "stop": 9}, {"op": "gate", "hold": 3}, {"op": "hold", "frame": 99}]
    made = script(APPLY, {"file": sent(track()), "text": json.dumps(items)})
    assert made["unseen"] == [0, 2, 3]
    assert script(APPLY, {"file": sent(track(), None), "text": '[{"op": "gate"}]'})["unseen"] == [0]


def test_every_field_of_an_operation_is_known_with_its_default(script) -> None:
    code = 'const {FIELDS, fieldsOf} = await load("timeline_operations.js"); '
    code += "return Object.fromEntries(Object.keys(FIELDS).map(op => [op, fieldsOf(op)]))"
    theirs = {op: {name: standard for name, (_, standard) in known.items()} for op, known in script(code).items()}
    ours = {
        op: {f.name: list(f.default) if f.default == () else f.default for f in fields(kind)} for op, kind in OPERATIONS.items()
    }
    assert theirs == ours


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[{]", "notJson"),
        ('{"op": "gain"}', "notList"),
        (7, "notText"),
        ('[{"op": "rest"}, {"op": "zoom"}]', "unknownOperation"),
        ('[{"op": "rest"}, null]', "unknownOperation"),
        ('[{"op": "constructor"}]', "unknownOperation"),
        ('[{"op": "rest", "colour": 1}]', "unknownField"),
        ('[{"op": "rest", "start": 1.5}]', "wrongValue"),
        ('[{"op": "rest", "start": 5, "stop": 5}]', "wrongValue"),
        ('[{"op": "gain", "mouth": "2"}]', "wrongValue"),
        ('[{"op": "keys", "points": [[5, 1], [5, 2]]}]', "wrongValue"),
    ],
)
def test_a_text_from_elsewhere_that_cannot_be_read_is_reported(text: object, problem: str, script) -> None:
    code = 'return (await load("timeline_operations.js")).parse(given)'
    made = script(code, text)
    assert made["items"] is None and made["problem"]["key"] == problem
    assert script(code, "  ") == {"items": [], "problem": None}


def test_what_is_written_reads_back_in_python(script) -> None:
    items = [{"op": "draw", "curve": "width", "points": [[3, 0.5], [9, 0.7]], "start": 3, "stop": 10}, {"op": "rest"}]
    text = script('return (await load("timeline_operations.js")).format(given)', items)
    assert json.loads(text) == items and len(from_json(text)) == 2 and text.count("\n") == 1
    assert script('return (await load("timeline_operations.js")).format([])') == "[]"


def test_a_run_sends_curves_speech_and_sound(script) -> None:
    code = 'const t = (await load("timeline_data.js")).unpacked(given); return {...t, values: [...t.values], '
    code += "level: [...t.level.levels[0].low], gate: null}"
    poses = track()
    made = script(code, sent(poses))
    assert made["frames"] == FRAMES and made["fps"] == 25 and made["levelHz"] == 50
    assert np.allclose(np.reshape(made["values"], (FRAMES, 12)), poses.values.numpy(), atol=1e-3)
    (region,) = made["speech"]  # speech ends at 1.2 s, frame 30; the gate stays open for a little longer
    assert region[0] == 0 and 30 <= region[1] <= 38
    assert max(made["level"]) == pytest.approx(1, abs=0.01) and made["level"][-1] == 0
    assert [curve["name"] for curve in made["curves"]] == list(NAMES)
    assert script('return (await load("timeline_data.js")).unpacked({version: 99})') is None


def test_a_track_without_sound_or_frames_is_no_trouble(script) -> None:
    code = """const t = (await load("timeline_data.js")).unpacked(given);
              return [t.frames, t.speech, t.level, t.curves[0].low < t.curves[0].high]"""
    assert script(code, sent(track(), None)) == [FRAMES, [], None, True]
    assert script(code, sent(track(0), None)) == [0, [], None, True]
    assert np.allclose(heard_in(torch.tensor([0.0] * 160 + [-0.5] * 10)).level, [0, 1])


def test_the_named_curves_read_what_python_reads(script) -> None:
    code = """const {readings, unpacked} = await load("timeline_data.js"), t = unpacked(given);
              return t.curves.map(curve => [...readings(t.values, t.frames, curve)])"""
    poses = track()
    for values, name in zip(script(code, sent(poses)), NAMES, strict=True):
        assert np.allclose(values, shape(name).read(poses.values).numpy(), atol=1e-3), name


def test_the_opening_is_what_the_bundled_lip_encoder_reads() -> None:
    encoder = load_network("lip-encoder")
    assert torch.allclose(shape("opening").weights, encoder.opening_weight, atol=1e-4), "run tests/measure_pose_numbers.py"
    assert shape("opening").bias == pytest.approx(float(encoder.opening_bias), abs=1e-4)


def test_time_on_screen(script) -> None:
    made = script("""
        const v = await load("timeline_view.js"), view = v.whole(1000, 500);
        const closer = v.zoomed(view, 4, 100, 1000), far = v.zoomed(closer, 0.001, 3, 1000);
        return {
            ends: [v.xOf(view, 0), v.xOf(view, 1000)], under: [-9, 250, 999].map(x => v.frameAt(view, x, 1000)),
            kept: [v.frameAt(view, 100, 1000), v.frameAt(closer, 100, 1000)], span: closer.span, far,
            panned: v.panned(closer, 1e9, 1000), closest: v.zoomed(view, 1e9, 100, 1000).span,
            range: v.rangeBetween(view, 251, 249, 1000), one: v.rangeBetween(view, 10, 10, 1000),
            edges: [v.edgeAt(view, 0.3, 1000), v.edgeAt(view, 500, 1000)],
            follows: [v.following(closer, 200, 1000) === closer, v.following(closer, 900, 1000).first],
            short: v.inside(v.whole(2, 500), 2), clock: [v.clock(62.04), v.clock(59.96), v.clock(1.25, true)],
            labels: [v.ticks(view, 25).map(t => t.label), v.ticks({first: 30, span: 10, width: 500}, 25).map(t => t.label)],
        };
    """)
    assert made["ends"] == [0, 500] and made["under"] == [0, 500, 999]
    assert made["kept"] == [200, 200] and made["span"] == 250 and made["far"] == {"first": 0, "span": 1000, "width": 500}
    assert made["panned"]["first"] == 750 and made["closest"] == 4
    assert (
        made["range"] == {"start": 498, "stop": 503} and made["one"] == {"start": 20, "stop": 21} and made["edges"] == [1, 1000]
    )
    assert made["follows"] == [True, 750] and made["short"] == {"first": 0, "span": 4, "width": 500}
    assert made["clock"] == ["1:02", "1:00", "0:01.3"]
    assert made["labels"] == [["0:00", "0:10", "0:20", "0:30", "0:40"], ["30", "32", "34", "36", "38", "40"]]


def test_a_pyramid_knows_the_extremes_of_any_stretch(script) -> None:
    values = torch.randn(1001, generator=torch.Generator().manual_seed(1)).numpy()
    cases = [[0, 1001, 1], [17, 1, 3], [40, 1.5, 10], [100, 60, 20], [-5, 2, 9], [0.25, 0.5, 8]]
    made = script("""
        const {pyramid, stretches} = await load("timeline_view.js"), p = pyramid(Float32Array.from(given.values));
        return given.cases.map(([first, step, count]) => {
            const {low, high, count: found} = stretches(p, first, step, count);
            return [[...low].slice(0, found), [...high].slice(0, found)];
        });
    """, {"values": values.tolist(), "cases": cases})  # fmt: skip
    for (first, step, count), (low, high) in zip(cases, made, strict=True):
        begins = [first + i * step for i in range(count) if first + i * step < len(values)]
        assert len(low) == len(begins)
        for begin, least, most in zip(begins, low, high, strict=True):
            start, stop = max(int(np.floor(begin)), 0), max(int(np.ceil(begin + step)), 1)
            part = values[start : max(stop, start + 1)]
            # for speed it may take in what lies beside it as far as half of its length, never less than it is
            wide = values[max(start - int(step / 2), 0) : max(stop, start + 1) + int(step / 2)]
            assert wide.min() <= least <= part.min() + 1e-6 and part.max() - 1e-6 <= most <= wide.max()


def test_a_stroke_has_every_frame_and_keeps_few_points(script) -> None:
    made = script("""
        const {simplified, strokeTo} = await load("timeline_view.js"), stroke = new Map();
        strokeTo(stroke, {frame: 10, value: 0}, {frame: 10, value: 0});
        strokeTo(stroke, {frame: 10, value: 0}, {frame: 20, value: 1});
        strokeTo(stroke, {frame: 20, value: 1}, {frame: 5, value: 0});
        const points = [...stroke].sort(([a], [b]) => a - b);
        const bent = simplified([[0, 0], [1, 0.001], [2, 1], [3, 1]], 0.01);
        return {points, kept: simplified(points, 0.01), bent, one: simplified([[4, 1]], 0.1)};
    """)
    assert [frame for frame, _ in made["points"]] == list(range(5, 21))
    assert made["points"][5] == [10, pytest.approx(1 / 3)]  # the way back overwrites
    assert made["kept"] == [[5, 0], [20, 1]] and made["bent"] == [[0, 0], [1, 0.001], [2, 1], [3, 1]] and made["one"] == [[4, 1]]


def test_lanes_bars_and_what_lies_under_the_pointer(script) -> None:
    made = script("""
        const v = await load("timeline_view.js");
        const wanted = [{key: "a", height: 20}, {key: "b", height: 30, grows: true}, {key: "c", height: 10, grows: true}];
        const placed = v.lanes(wanted, 100);
        return {placed, hit: [0, 20, 99, 100].map(y => v.laneAt(placed, y)?.key ?? null),
            bars: v.bars([{start: 0, stop: 10}, {start: 5, stop: 20}, {start: 10, stop: 12}, {}], 50)};
    """)
    assert [(lane["top"], lane["height"]) for lane in made["placed"]] == [(0, 20), (20, 60), (80, 20)]
    assert made["hit"] == ["a", "b", "c", None]
    assert [(bar["row"], bar["start"], bar["stop"]) for bar in made["bars"]] == [(0, 0, 10), (1, 5, 20), (0, 10, 12), (2, 0, 50)]


def test_undo_goes_back_and_forth_and_takes_a_drag_as_one_step(script) -> None:
    made = script("""
        const {History} = await load("timeline_history.js"), h = new History("a");
        h.push("b"); h.push("b"); h.push("c", "drag"); h.push("d", "drag"); h.settle(); h.push("e", "drag");
        const back = [h.undo(), h.undo(), h.undo(), h.undo()], forth = [h.redo(), h.redo(), h.redo(), h.redo()];
        h.undo(); h.push("f");
        const after = [h.redo(), h.undo()];
        for (let i = 0; i < 1000; i++) h.push(String(i));
        h.reset("z");
        return {back, forth, after, empty: [h.undo(), h.redo()]};
    """)
    assert made["back"] == ["d", "b", "a", None] and made["forth"] == ["b", "d", "e", None]
    assert made["after"] == [None, "d"] and made["empty"] == [None, None]


def test_every_text_is_there_in_english_and_chinese() -> None:
    texts = {
        language: json.loads((LOCALES / language / "main.json").read_text(encoding="utf-8"))["flashlipsTimeline"]
        for language in ("en", "zh")
    }
    assert texts["en"].keys() == texts["zh"].keys()
    wanted = {f"op {name}" for name in OPERATIONS} | set(NAMED) | {f"number {dim}" for dim in range(12)}
    assert wanted <= texts["en"].keys()
    for key, english in texts["en"].items():
        places = re.compile(r"\[(\w+)\]")
        assert set(places.findall(english)) == set(places.findall(texts["zh"][key])), key
