"""Which frames show the editor a person's mouth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from toy_dubs import CROP_PX, make_track

from flashlips_core.face.head_pose import rotations
from flashlips_core.face.points import mean_shape
from flashlips_core.references import candidate_frames, choose_references, head_pose, head_turns, mouth_frames


def test_references_are_spread_from_closed_to_open_mouths():
    crops = torch.zeros(32, 3, 16, 16)
    poses = torch.zeros(32, 12)
    poses[:, 3] = torch.randperm(32, generator=torch.Generator().manual_seed(0)).float()
    chosen = choose_references(crops, poses, 4)
    opening = sorted(poses[chosen, 3].tolist())
    assert len(set(chosen)) == 4 and min(b - a for a, b in zip(opening, opening[1:], strict=False)) >= 5


def test_blurred_frames_are_no_references():
    crops = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    crops[::4] = 0.5
    poses = torch.arange(16.0)[:, None].expand(16, 12)
    assert not {0, 4, 8, 12} & set(choose_references(crops, poses, 4))


def test_candidates_show_the_usual_head_pose():
    track = make_track(320)
    points = track.points.copy()
    turned = np.arange(320) % 10 != 7
    points[turned, 2, 0] += 6  # the nose moves to the side
    points[~turned, 2, 0] += 0
    usual = replace(track, points=np.where(turned[:, None, None], points, track.points))
    assert (candidate_frames(usual, 32) % 10 != 7).all()
    assert np.allclose(head_pose(track.points)[0], head_pose(2 * track.points + 5)[0], atol=1e-6)  # free of scale and place


def test_a_short_clip_gives_all_the_references_it_has(lipsync, plain_clip):  # noqa: F811
    look = lipsync.look(plain_clip, make_track(absent=tuple(range(2, 25))), 4)
    assert look.frames == [0, 1] and look.references.shape == (2, 3, CROP_PX, CROP_PX)


def test_the_lips_of_references_are_read_once(lipsync, plain_clip, monkeypatch):  # noqa: F811
    look = lipsync.look(plain_clip, make_track(), 4)
    torch.testing.assert_close(look.reference_poses, lipsync.encode_lips(look.references), atol=1e-4, rtol=0)
    other = look.with_references(look.references.flip(0))
    assert other.reference_poses is None and other.frames == [] and other.mouths is look.mouths
    read = lipsync.prepared(other).context.poses[0]
    monkeypatch.setattr(lipsync, "encode_lips", None)  # not asked again
    torch.testing.assert_close(lipsync.prepared(look).context.poses[0], read.flip(0), atol=1e-4, rtol=0)


def test_as_many_references_are_chosen_as_suit_the_editor(lipsync, plain_clip, monkeypatch):  # noqa: F811
    monkeypatch.setattr(lipsync.editor, "num_references", 5)
    assert len(lipsync.look(plain_clip, make_track()).frames) == 5
    assert len(lipsync.look(plain_clip, make_track(), 3).frames) == 3


def test_head_turns_are_read_off_landmarks_and_guessed_without():
    angles = np.stack([np.linspace(-0.6, 0.6, 9), np.linspace(0.2, -0.3, 9), np.linspace(-0.2, 0.5, 9)], 1)  # yaw, pitch, roll
    seen = (mean_shape() @ rotations(angles).swapaxes(1, 2))[..., :2] * (1, -1) * 9 + (200, 150)
    track = make_track(9)
    assert np.allclose(head_turns(replace(track, landmarks=seen.astype(np.float32))), angles[:, :2], atol=0.01)
    assert np.array_equal(head_turns(track), head_pose(track.points)[:, :2])


def test_mouths_are_kept_of_frames_spread_over_all_that_show_the_face():
    absent = tuple(range(50, 150))
    frames = mouth_frames(make_track(1000, absent=absent))
    assert len(frames) == 96 and (np.diff(frames) > 0).all() and not set(absent) & set(frames.tolist())
    assert frames[0] == 0 and frames[-1] == 999 and np.diff(frames).max() < 100 + 2 * 10
    assert mouth_frames(make_track(20, absent=(3,))).tolist() == [i for i in range(20) if i != 3]
    assert mouth_frames(make_track(1)).tolist() == [0]
