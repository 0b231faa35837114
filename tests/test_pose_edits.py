"""The operations of a timeline editor: each one's effect, its range and fade, the text they are kept in, and what is refused."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from flashlips_core.drawings.poses import SIZE, draw_poses
from flashlips_core.poses import motion as tracks
from flashlips_core.poses.operations import (
    OPERATIONS,
    Copy,
    Draw,
    Gain,
    Gate,
    Hold,
    Keys,
    Mix,
    Rest,
    Shift,
    Smooth,
    Surroundings,
    apply_operations,
    from_json,
    simple_operations,
)
from flashlips_core.poses.shapes import NAMED, NAMES, shape
from flashlips_core.poses.silence import silence_gate
from flashlips_core.types import AudioFeatures, FlashLipsError, LipPoses

REST = torch.linspace(-1, 1, 12)
AROUND = Surroundings(REST)


def as_json(operations) -> str:
    """The text that the timeline writes."""
    return json.dumps([{"op": o.name, **{field.name: getattr(o, field.name) for field in fields(o)}} for o in operations])


def random_track(frames: int = 40, seed: int = 0, fps: Fraction = Fraction(25)) -> LipPoses:
    return LipPoses(torch.randn(frames, 12, generator=torch.Generator().manual_seed(seed)), fps)


def edited(poses: LipPoses, *operations, around: Surroundings = AROUND) -> torch.Tensor:
    """The pose numbers after the operations, which go through their JSON text on the way."""
    return apply_operations(poses, from_json(as_json(operations)), around).values


def speech_then_silence() -> AudioFeatures:
    level = torch.cat([torch.full((40,), -20.0), torch.full((60,), -90.0)])
    return AudioFeatures(torch.zeros(100, 4), Fraction(50), "log-mel", level)


# -- what each operation does ----------------------------------------------------------------------------------------------


def test_an_empty_list_changes_nothing() -> None:
    poses = random_track()
    assert from_json("[]") == from_json(" \n") == []
    assert apply_operations(poses, [], AROUND) is poses


def test_whole_track_operations_equal_the_functions_they_are_made_of() -> None:
    poses = random_track()
    assert torch.equal(edited(poses, Gain(expression=1.5, mouth=0.5)), tracks.gain(poses, 1.5, 0.5, REST).values)
    assert torch.equal(edited(poses, Smooth(deviation=2)), tracks.smooth(poses, 2 / 25).values)
    assert torch.equal(edited(poses, Shift(frames=-1.5)), tracks.shift(poses, -1.5 / 25).values)
    features = speech_then_silence()
    around = replace(AROUND, features=features)
    assert torch.equal(edited(poses, Gate(), around=around), silence_gate(poses, features, REST).values)


def test_gate_times_are_frames_of_the_track() -> None:
    poses, around = random_track(50, fps=Fraction(25)), replace(AROUND, features=speech_then_silence())
    slow = edited(poses, Gate(hold=5, release=10), around=around)
    expected = silence_gate(poses, around.features, REST, hold_s=0.2, release_s=0.4).values
    assert torch.allclose(slow, expected, atol=1e-6)
    assert not torch.equal(slow, edited(poses, Gate(), around=around))


def test_hold_freezes_the_pose_of_its_first_or_a_chosen_frame() -> None:
    poses = random_track()
    held = edited(poses, Hold(start=10, stop=20))
    assert torch.equal(held[10:20], poses.values[10].expand(10, 12))
    assert torch.equal(edited(poses, Hold(start=10, stop=20, frame=3))[12], poses.values[3])
    assert torch.equal(held[:10], poses.values[:10]) and torch.equal(held[20:], poses.values[20:])


def test_keys_add_a_curve_that_is_linear_between_points_and_held_outside() -> None:
    poses = random_track()
    added = edited(poses, Keys(dimension=8, points=((10, 1.0), (20, 3.0)))) - poses.values
    assert torch.allclose(added[:, 8], torch.from_numpy(np.interp(np.arange(40), [10, 20], [1, 3])).float(), atol=1e-6)
    assert not added[:, :8].any() and not added[:, 9:].any()
    assert torch.equal(edited(poses, Keys()), poses.values)


def test_rest_closes_the_lips() -> None:
    poses = random_track()
    assert torch.equal(edited(poses, Rest(start=5, stop=9))[5:9], REST.expand(4, 12))
    assert torch.allclose(edited(poses, Rest(amount=0.5)), (poses.values + REST) / 2, atol=1e-6)


def test_mix_fits_the_other_track_to_this_one() -> None:
    poses, other = random_track(), random_track(100, seed=1, fps=Fraction(50))
    around = replace(AROUND, other=other)
    fitted = tracks.resample(other, poses.fps, len(poses)).values
    assert torch.equal(edited(poses, Mix(), around=around), fitted)
    assert torch.allclose(edited(poses, Mix(amount=0.25), around=around), torch.lerp(poses.values, fitted, 0.25))


def test_a_mask_says_where_to_mix() -> None:
    poses, other = random_track(), random_track(seed=1)
    mask = torch.linspace(0, 1, 40)
    around = Surroundings(REST, other, mask=mask)
    expected = torch.lerp(poses.values, other.values, 0.5 * mask[:, None])
    assert torch.allclose(edited(poses, Mix(amount=0.5, mask=True), around=around), expected)
    constant = replace(around, mask=torch.tensor([0.5]))
    assert torch.allclose(edited(poses, Mix(mask=True), around=constant), (poses.values + other.values) / 2, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "copy"])  # whose effect depends on its start
def test_every_operation_keeps_to_its_range_and_fades_into_it(name: str) -> None:
    poses = random_track()
    around = Surroundings(REST, random_track(seed=1), speech_then_silence(), torch.ones(40))
    effective = {
        "gain": {"expression": 2, "mouth": 0}, "shift": {"frames": 3}, "keys": {"points": [[0, 1.0]]}, "hold": {"frame": 2},
        "draw": {"points": [[0, 0.2]]},
    }.get(name, {})  # fmt: skip
    whole = OPERATIONS[name](**effective).apply(poses, around).values
    part = OPERATIONS[name](**effective, start=20, stop=30, fade=3).apply(poses, around).values
    assert torch.equal(part[20:30], whole[20:30]) and not torch.equal(whole, poses.values)
    assert torch.equal(part[:17], poses.values[:17]) and torch.equal(part[33:], poses.values[33:])
    for frame, weight in ((19, 0.75), (18, 0.5), (17, 0.25), (30, 0.75), (32, 0.25)):
        assert torch.allclose(part[frame], torch.lerp(poses.values[frame], whole[frame], weight), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_drawn_curve_is_what_the_mouth_then_does(name: str) -> None:
    poses, points = random_track(), ((10, 0.1), (20, 0.3))
    drawn = edited(poses, Draw(curve=name, points=points, start=10, stop=21))
    expected = torch.from_numpy(np.interp(np.arange(10, 21), [10, 20], [0.1, 0.3])).float()
    assert torch.allclose(shape(name).read(drawn)[10:21], expected, atol=1e-4)
    assert torch.equal(drawn[:10], poses.values[:10]) and torch.equal(drawn[21:], poses.values[21:])
    assert torch.equal(edited(poses, Draw(curve=name)), poses.values)


@pytest.mark.parametrize("name", NAMED)
def test_drawing_one_shape_leaves_the_other_named_ones(name: str) -> None:
    poses = random_track()
    drawn = edited(poses, Draw(curve=name, points=((0, 0.5),)))
    for other in set(NAMED) - {name}:
        assert torch.allclose(shape(other).read(drawn), shape(other).read(poses.values), atol=1e-4)


def test_a_copied_range_is_repeated_and_fades() -> None:
    poses = random_track()
    made = edited(poses, Copy(start=20, stop=28, source=3, fade=1))
    assert torch.equal(made[20:28], poses.values[3:11])
    assert torch.allclose(made[28], (poses.values[28] + poses.values[11]) / 2, atol=1e-6)
    assert torch.allclose(made[19], (poses.values[19] + poses.values[2]) / 2, atol=1e-6)
    assert torch.equal(edited(poses, Copy(start=30, source=36))[34:], poses.values[39].expand(6, 12))  # the last pose is held


def test_operations_are_applied_in_order() -> None:
    poses = random_track()
    first = edited(poses, Rest(), Keys(points=((0, 2.0),)))
    assert torch.allclose(first[:, 0], REST[0] + 2)
    assert torch.allclose(edited(poses, Keys(points=((0, 2.0),)), Rest()), REST.expand(40, 12))


def test_an_edit_makes_a_new_track_of_the_same_rate_and_length() -> None:
    poses = random_track()
    before = poses.values.clone()
    for name in OPERATIONS:
        around = Surroundings(REST, random_track(seed=1), speech_then_silence())
        out = OPERATIONS[name]().apply(poses, around)
        assert out.fps == poses.fps and out.values.shape == poses.values.shape and out.values.dtype == torch.float32
    assert torch.equal(poses.values, before)


# -- sliders ---------------------------------------------------------------------------------------------------------------


def test_untouched_sliders_are_no_operation() -> None:
    assert simple_operations(Fraction(25)) == []


def test_sliders_become_operations_in_frames_of_the_track() -> None:
    made = simple_operations(Fraction(50), 1.2, 0.8, smoothing_ms=40, offset_ms=-100, mix=0.5, is_masked=True, is_gated=True)
    assert made == [
        Mix(amount=0.5, mask=True), Gain(expression=1.2, mouth=0.8), Smooth(deviation=2.0), Gate(), Shift(frames=-5.0),
    ]  # fmt: skip


# -- text ------------------------------------------------------------------------------------------------------------------


def test_the_text_of_operations_reads_back_as_the_same_operations() -> None:
    operations = [
        Gain(expression=1.5, start=3, stop=9, fade=2.5), Smooth(deviation=1.5), Shift(frames=-2), Hold(frame=4), Mix(mask=True),
        Gate(threshold_db=-40, attack=0, hold=3.5), Keys(dimension=11, points=((0, -1.5), (7, 2))), Rest(amount=0.5),
        Draw(curve="width", points=((0, 0.5), (7, 0.6))), Copy(source=7),
    ]  # fmt: skip
    assert {o.name for o in operations} == set(OPERATIONS)
    assert from_json(as_json(operations)) == operations


def test_the_fields_of_the_format_are_these_and_change_by_decision_only() -> None:
    """Shared graphs hold these names; add a line here to add a field."""
    shared = ["start", "stop", "fade"]
    assert {name: [f.name for f in fields(kind)] for name, kind in OPERATIONS.items()} == {
        "gain": [*shared, "expression", "mouth"],
        "smooth": [*shared, "deviation"],
        "shift": [*shared, "frames"],
        "hold": [*shared, "frame"],
        "mix": [*shared, "amount", "mask"],
        "gate": [*shared, "threshold_db", "attack", "hold", "release"],
        "keys": [*shared, "dimension", "points"],
        "rest": [*shared, "amount"],
        "draw": [*shared, "curve", "points"],
        "copy": [*shared, "source"],
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[{]", "no JSON .* line 1, column 3"),
        ("[" * 100_000, "nested too deeply"),
        ('{"op": "gain"}', "must be a JSON list"),
        ("3", "must be a JSON list"),
        ('[{"op": "rest"}, 7]', "Operation 2 must be an object"),
        ('[{"op": "rest"}, {"mouth": 2}]', "Operation 2: 'op' must be one of gain, smooth, .*, copy, got null"),
        ('[{"op": ["gain"]}]', "Operation 1: 'op' must be one of"),
        ('[{"op": "gian"}]', "Operation 1: 'op' must be one of .* got \"gian\""),
        (
            '[{"op": "gain", "mouht": 2}]',
            "Operation 1 .gain. does not know 'mouht'; its fields are start, stop, fade, expression",
        ),
        ('[{"op": "gain", "mouth": "2"}]', "Operation 1 .gain.: 'mouth' must be a number from -10 to 10, got \"2\""),
        ('[{"op": "gain", "mouth": true}]', "'mouth' must be a number from -10 to 10, got true"),
        ('[{"op": "gain", "mouth": null}]', "'mouth' must be a number from -10 to 10, got null"),
        ('[{"op": "gain", "mouth": NaN}]', "'mouth' must be a number from -10 to 10, got NaN"),
        ('[{"op": "gain", "mouth": 1e999}]', "'mouth' must be a number from -10 to 10"),
        ('[{"op": "smooth", "deviation": -1}]', "'deviation' must be a number from 0 to 1000, got -1"),
        ('[{"op": "hold", "start": 1.5}]', "'start' must be a whole number from 0 to"),
        ('[{"op": "hold", "stop": 0}]', "'stop' must be a whole number from 1 to .*, or null, got 0"),
        ('[{"op": "hold", "start": 9, "stop": 9}]', "'stop' must be above 'start', got 9 and 9"),
        ('[{"op": "hold", "fade": -1}]', "'fade' must be a number from 0"),
        ('[{"op": "mix", "mask": 1}]', "'mask' must be true or false, got 1"),
        ('[{"op": "gate", "release": "slow"}]', "'release' must be a number from 0 to 1000, or null"),
        ('[{"op": "keys", "dimension": 12}]', "'dimension' must be a whole number from 0 to 11, got 12"),
        ('[{"op": "keys", "points": [[5, 1], [5, 2]]}]', "'points' must be a list of .frame, number. with ascending"),
        ('[{"op": "keys", "points": [[5, 1, 2]]}]', "'points' must be a list"),
        ('[{"op": "keys", "points": {"5": 1}}]', "'points' must be a list"),
        ('[{"op": "draw", "curve": "nose"}]', "'curve' must be one of opening, width, .*, number 11, got \"nose\""),
        ('[{"op": "copy", "source": -1}]', "'source' must be a whole number from 0"),
    ],
)
def test_a_wrong_list_is_refused_in_one_sentence_that_names_the_operation(text: str, says: str) -> None:
    with pytest.raises(FlashLipsError, match=says) as error:
        from_json(text)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_operations_made_in_python_are_checked_like_those_from_text() -> None:
    with pytest.raises(FlashLipsError, match="'amount' must be a number from 0 to 1, got 2"):
        Mix(amount=2)


@pytest.mark.parametrize(
    ("operation", "says"),
    [
        (Rest(start=40), "Operation 2 .rest.: 'start' is frame 40, but the track has frames 0 to 39"),
        (Hold(frame=99), "Operation 2 .hold.: 'frame' is 99, but the track has frames 0 to 39"),
        (Mix(), "Operation 2 .mix.: There is no other track"),
        (Gate(), "Operation 2 .gate.: There is no sound"),
    ],
)
def test_an_operation_that_does_not_fit_the_track_is_named(operation, says: str) -> None:
    with pytest.raises(FlashLipsError, match=says):
        apply_operations(random_track(), [Rest(), operation], AROUND)


def test_masks_and_features_that_do_not_fit_are_refused() -> None:
    around = Surroundings(REST, random_track(seed=1))
    with pytest.raises(FlashLipsError, match="There is no mask"):
        edited(random_track(), Mix(mask=True), around=around)
    with pytest.raises(FlashLipsError, match="The mask has 7 frames, the track has 40"):
        edited(random_track(), Mix(mask=True), around=replace(around, mask=torch.ones(7)))
    silent = AudioFeatures(torch.zeros(80, 4), Fraction(50), "wav2vec2-base:12", torch.zeros(0))
    with pytest.raises(FlashLipsError, match="do not say how loud"):
        edited(random_track(), Gate(), around=replace(around, features=silent))
    with pytest.raises(FlashLipsError, match="no poses to edit"):
        apply_operations(LipPoses(torch.zeros(0, 12), Fraction(25)), [Rest()], AROUND)


# -- picture ---------------------------------------------------------------------------------------------------------------


def opening(values: torch.Tensor) -> torch.Tensor:
    return 0.2 + 0.05 * values[:, 0]


@pytest.mark.parametrize("frames", [1, 2, 40, 5000])
def test_tracks_of_any_length_are_drawn(frames: int) -> None:
    picture = draw_poses(random_track(frames), opening, random_track(30, seed=1, fps=Fraction(30)), torch.full((100,), -20.0))
    assert picture.shape == (SIZE[1], SIZE[0], 3) and picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_the_picture_shows_the_motion_the_other_track_and_the_sound() -> None:
    poses = random_track(60)
    plain = draw_poses(poses, opening)
    assert np.array_equal(plain, draw_poses(poses, opening))
    for changed in (
        draw_poses(random_track(60, seed=1), opening),
        draw_poses(poses, opening, random_track(60, seed=1)),
        draw_poses(poses, opening, level_db=torch.full((120,), -20.0)),
    ):
        assert (changed != plain).any(2).mean() > 0.01


def test_still_lips_and_lips_without_frames_are_no_surprise() -> None:
    draw_poses(LipPoses(torch.full((20, 12), 0.5), Fraction(25)), lambda values: torch.zeros(len(values)))
    with pytest.raises(FlashLipsError, match="no poses to show"):
        draw_poses(LipPoses(torch.zeros(0, 12), Fraction(25)), opening)
