"""Which frames show the editor a person's mouth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from test_pipeline import CROP_PX, lipsync, make_track, model_folder  # noqa: F401

from flashlips_core.references import candidate_frames, choose_references, head_pose


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


def test_as_many_references_are_chosen_as_suit_the_editor(lipsync, plain_clip, monkeypatch):  # noqa: F811
    monkeypatch.setattr(lipsync.editor, "num_references", 5)
    assert len(lipsync.look(plain_clip, make_track()).frames) == 5
    assert len(lipsync.look(plain_clip, make_track(), 3).frames) == 3
