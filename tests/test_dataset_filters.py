"""What becomes a sample: frames at 25 a second, a track per person and scene, filters with their reasons, reference rows."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from painted_faces import BLUE, RED, PatchDetector, clip_of
from toy_sets import QUICK, at, demo, lipsync, write_clip  # noqa: F401

from flashlips_core.dataset.build import build
from flashlips_core.dataset.filters import REASONS, Limits, Measures, missed
from flashlips_core.dataset.samples import reference_rows
from flashlips_core.dataset.scenes import at_rate, stretches
from flashlips_core.face import track_scenes
from flashlips_core.types import Audio, FlashLipsError, Frame

# ---- frames, scenes, people ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fps", "expected"),
    [(25, [0, 1, 2, 3, 4]), (50, [1, 3, 5, 7, 9]), (30, [0, 1, 3, 4, 5]), (Fraction(25, 2), [0, 0, 1, 1, 2, 2])],
)
def test_frames_come_at_25_a_second_as_a_viewer_sees_them(fps, expected):
    count = {25: 5, 50: 10, 30: 6}.get(fps, 3)
    frames, info = clip_of(lambda t: [], count, 25)
    frames = [replace(frame, pts=90_000 + i) for i, frame in enumerate(frames)]
    info = replace(info, fps=Fraction(fps), time_base=1 / Fraction(fps))
    assert [frame.pts - 90_000 for frame in at_rate(iter(frames), info)] == expected


def test_each_person_of_each_scene_gets_a_track_of_its_own():
    def scene(t):
        return [(60, 80, 50, RED), (170, 80, 40, BLUE)] if t < 20 else [(120, 70, 60, RED)]

    frames, info = clip_of(scene, 45)
    frames = [
        f if i < 20 else replace(f, planes=(np.where(f.planes[0] < 105, 200 - f.planes[0], f.planes[0]), *f.planes[1:]))
        for i, f in enumerate(frames)
    ]
    found = track_scenes(iter(frames), info, PatchDetector())
    assert [(start, [len(t) for t in tracks]) for start, tracks in found] == [(0, [20, 20]), (20, [25])]
    assert abs(found[0][1][0].points[0, :2, 0].mean() - 60) < 4 and abs(found[0][1][1].points[0, :2, 0].mean() - 170) < 4


def test_long_stretches_are_parted_evenly_and_long_absences_part_them():
    present = np.ones(300, bool)
    present[:10] = present[100:140] = present[200:205] = False
    assert stretches(present, 60) == [(10, 55), (55, 100), (140, 193), (193, 247), (247, 300)]
    assert stretches(np.zeros(5, bool), 60) == []


# ---- filters ---------------------------------------------------------------------------------------------------------------


def hidden(frame: Frame) -> Frame:
    """A face that the detector overlooks, in a picture that hardly changes: no cut."""
    luma = frame.planes[0].copy()
    luma[:16, :16] = 235
    chroma = [plane.copy() for plane in frame.planes[1:]]
    for plane in chroma:
        plane[:8, :8] = 128
    return replace(frame, planes=(luma, *chroma))


def soft(frame: Frame) -> Frame:
    from scipy.ndimage import gaussian_filter

    return replace(frame, planes=(gaussian_filter(frame.planes[0], 6), *frame.planes[1:]))


def spoilt(kind: str, frames: list[Frame], sound: Audio) -> tuple[list[Frame], Audio | None]:
    """The demo clip with one fault."""
    if kind == "too short":
        return frames[:20], at(sound, 0, 0.8)
    if kind == "face missing too often":
        return [hidden(f) if i % 25 > 12 else f for i, f in enumerate(frames)], at(sound, 0)
    if kind == "no sound":
        return frames, None
    if kind == "blurred":
        return [soft(f) for f in frames], at(sound, 0)
    if kind == "sound and mouth out of step":
        return frames, at(sound, -8 / 25)
    if kind == "sound does not belong to the mouth":
        return [replace(frames[0], pts=f.pts) for f in frames], at(sound, 0)  # somebody listens
    return [replace(f, planes=tuple(p[::4, ::4] for p in f.planes)) for f in frames], at(sound, 0)


@pytest.mark.parametrize("reason", REASONS)
def test_every_fault_has_its_reason_and_its_limit(reason, demo, lipsync, tmp_path):  # noqa: F811
    write_clip(tmp_path / "in" / "clip.mp4", *spoilt(reason, *demo))
    with pytest.raises(FlashLipsError, match=f"1 {reason}.*shows why"):
        build([tmp_path / "in"], tmp_path / "set", lipsync, QUICK)
    row = json.loads((tmp_path / "set" / "samples.jsonl").read_text())
    measure, limit = REASONS[reason]
    wide = {"min_face_px": 1.0, "min_sharpness": 0.0, "max_missing": 1.0, "min_seconds": 0.1, "min_sync": -1.0, "max_lag": 12}
    relaxed = replace(QUICK.limits, **({"keep_silent": True} if limit == "keep_silent" else {limit: wide[limit]}))
    measures = Measures(**row["measures"])
    assert row["reason"] == missed(measures, QUICK.limits) == reason and measure in row["measures"]
    assert missed(measures, relaxed) != reason
    assert f"Dropped: {reason}" in (tmp_path / "set" / "report.html").read_text()


def test_a_late_sound_is_measured_to_the_frame(demo, lipsync, tmp_path):  # noqa: F811
    lags = []
    for name, seconds in (("true", 0.0), ("late", -6 / 25)):
        write_clip(tmp_path / name / "clip.mp4", demo[0], at(demo[1], seconds))
        build([tmp_path / name], tmp_path / f"set_{name}", lipsync, replace(QUICK, limits=Limits(max_lag=12, min_seconds=1.0)))
        lags.append(json.loads((tmp_path / f"set_{name}" / "samples.jsonl").read_text())["measures"]["lag"])
    assert abs(lags[0]) <= 2 and lags[1] == lags[0] - 6


def test_references_share_the_head_pose_and_differ_in_the_mouth():
    turn = np.repeat([0.0, 8.0], 30)  # two head poses, 30 frames each
    points = np.tile(np.array([[100, 100], [140, 100], [120, 125], [104, 150], [136, 150]], np.float32), (60, 1, 1))
    points[:, 2, 0] += turn
    poses = torch.zeros(60, 12)
    poses[:, 0] = torch.arange(60) % 30
    rows = reference_rows(points, poses).long()
    assert rows.shape == (60, 8)
    assert ((rows < 30) == (torch.arange(60) < 30)[:, None]).all() and (rows != torch.arange(60)[:, None]).all()
    distance = (poses[rows, 0] - poses[:, None, 0]).abs()
    assert (distance.diff(dim=1) <= 0).all() and (distance[:, -1] >= 8).all()
    assert reference_rows(points[:3], poses[:3]).shape == (3, 2) and reference_rows(points[:1], poses[:1]).shape == (1, 0)
