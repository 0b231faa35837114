"""Retrieved starts: which mouths are laid where, and what an editor learns from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import TINY_EDITOR, tiny_codec

from flashlips_core.dataset.store import CropStore
from flashlips_core.models.editor_unet import EditorUNet
from flashlips_core.models.lip_encoder import LipEncoder, LipEncoderConfig
from flashlips_core.retrieval import ellipse
from flashlips_core.train.batches.aligned import aligned_squares, wider
from flashlips_core.train.editor import retrieved as training
from flashlips_core.train.editor import starts as pairs
from flashlips_core.train.editor.pairs import Judge
from flashlips_core.train.loop.trainer import step_generator
from flashlips_core.types import FlashLipsError


def clip_store(folder, frames: int = 24, size: int = 64) -> CropStore:
    """One clip whose frames differ in brightness."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 120, (1, size, size, 3))
    images = noise + np.linspace(0, 120, frames).astype(int)[:, None, None, None]
    np.save(folder / "crops.npy", images.astype(np.uint8))
    points = rng.uniform(0.35, 0.65, (1, 99, 2)) + rng.normal(0, 0.002, (frames, 99, 2))
    np.savez(
        folder / "table.npz", clip_of=np.zeros(frames, int), frame_of=np.arange(frames),
        landmarks=points.astype(np.float32), clip_ids=["a/1"], speakers=["a"],
    )  # fmt: skip
    return CropStore(folder)


def reader() -> LipEncoder:
    torch.manual_seed(0)
    return LipEncoder(LipEncoderConfig(channels=(8, 8), blocks=(1, 1), mouth_px=32)).eval()


@pytest.fixture
def retrieved(tmp_path):
    pairs.encode_retrieved(clip_store(tmp_path / "crops"), tiny_codec(), reader(), tmp_path / "starts", 2, 5, 0, 0.5, 256)
    return pairs.load_retrieved([tmp_path / "starts"])


def test_what_is_laid_over_changes_the_mouth_alone_and_takes_the_frames_colour():
    frame = torch.full((2, 3, 128, 128), 0.2)
    mouth = frame - 0.5 + 0.1 * torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    laid, area = pairs.lay_over(frame, mouth), ellipse(128)
    assert torch.equal(laid[(area == 0).expand_as(laid)], frame[(area == 0).expand_as(laid)])
    inside = (area == 1).expand_as(laid)
    assert float(laid[inside].mean()) == pytest.approx(0.2, abs=0.02)
    assert torch.allclose(laid[inside] - laid[inside].mean(), mouth[inside] - mouth[inside].mean(), atol=0.05)


def test_mouths_are_misplaced_by_no_more_than_landmarks_leave():
    motion = pairs.misplacement(500, torch.Generator().manual_seed(0))
    scale = torch.linalg.det(motion[:, :, :2]).sqrt()
    turn = torch.atan2(motion[:, 1, 0], motion[:, 0, 0])
    assert (scale - 1).abs().max() <= 0.0201 and 0.03 < float(turn.abs().max()) <= 0.0351
    # In the wide crop's [-1, 1] a share s of the editor's side is 2 s / 1.25
    assert float(motion[:, :, 2].abs().max()) <= 0.015 * 2 / 1.25 and float(motion[:, :, 2].abs().max()) > 0.02


def test_the_nearest_mouths_come_first_and_neighbours_in_time_last():
    poses = np.arange(12.0)[:, None] * np.ones((1, 12))
    poses[6] = poses[0] + 0.1  # far in time, near in pose
    order = pairs.nearest_mouths(poses, np.zeros((12, 4, 2)), np.arange(12))
    assert order[0, 0] == 6
    assert set(order[0, -3:]) == {0, 1, 2}


def test_starts_are_near_ones_and_sometimes_any():
    order = np.argsort(np.random.default_rng(0).random((60, 60)), 1)
    rows = np.arange(60).repeat(20)
    drawn = pairs.draw_starts(order, rows, torch.Generator().manual_seed(0))
    ranks = np.array([[list(order[row]).index(start) for start in starts] for row, starts in zip(rows, drawn, strict=True)])
    assert drawn.shape == (1200, pairs.NUM_STARTS) and ranks.max() < 60 - 2 * pairs.APART - 1
    assert 0.8 < (ranks < pairs.NEAREST).mean() < 0.93


def test_batches_hold_starts_of_their_own_frames_and_a_share_of_the_frames_themselves(retrieved):
    batch = pairs.retrieved_batches(retrieved, 400, 4, alike=0.25)(torch.Generator().manual_seed(0))
    same = (batch.near_pixels == batch.pixels).flatten(1).all(1)
    assert 0.17 < same.float().mean() < 0.35
    assert torch.equal(batch.z_near[same], batch.z_src[same])
    other = ~same
    assert (batch.z_near[other] != batch.z_src[other]).flatten(1).any(1).all()
    outside = batch.near_pixels[other][:, :, 0] - batch.pixels[other][:, :, 0]  # the window's first row lies above the mouth
    assert outside.abs().max() == 0


def test_targets_are_never_among_their_references(tmp_path):
    store = clip_store(tmp_path / "crops")
    rows = np.random.default_rng(0).permutation(24)
    own, order = np.arange(24), np.argsort(np.random.default_rng(0).random((24, 24)), 1)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        encoded = pairs._encode_look(store, own, rows, 8, order, tiny_codec(), reader(), generator, 0.0, 256)
    targets, references = encoded["poses"], encoded["reference_poses"][0]
    apart = np.abs(targets[:, None] - references[None]).max(-1)
    assert apart.min() > 0 and len(targets) == 8


def test_clips_that_are_too_short_are_refused(tmp_path):
    with pytest.raises(FlashLipsError, match="long enough"):
        pairs.encode_retrieved(clip_store(tmp_path / "crops", 6), tiny_codec(), reader(), tmp_path / "out", 1, 5, 0, 0.5, 384)


def test_where_nothing_changes_the_picture_is_the_start_and_where_much_does_the_drawing():
    start, shown, drawn = (torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(3))
    nothing = training.composed(start, shown, shown, torch.zeros(1, 1, 8, 8))
    assert torch.allclose(nothing, start, atol=1e-6)
    assert torch.allclose(training.composed(start, shown, drawn, torch.ones(1, 1, 8, 8)), drawn, atol=1e-6)
    before = torch.zeros(1, 4, 8, 8)
    share = training.redrawn_share(before, before + torch.tensor([0.1, 1.0]).repeat_interleave(4))
    assert share[..., 0].max() == 0 and share[..., -1].min() == 1


def test_an_editor_that_leaves_fitting_starts_alone_has_nothing_to_lose(retrieved):
    """The identity is without fault where the start is the frame itself."""
    torch.manual_seed(0)
    editor, step = EditorUNet(TINY_EDITOR), training.retrieved_step(Judge(tiny_codec()))
    alike = pairs.retrieved_batches(retrieved, 4, 4, alike=1.0)(torch.Generator().manual_seed(0))
    losses = step(editor, alike, torch.Generator())
    assert {k: v.item() for k, v in losses.items() if k != "drawn"} == pytest.approx(
        {"latent": 0, "needless": 0, "pixel": 0, "lips": 0, "sharpness": 0, "texture": 0}, abs=1e-5
    )
    laid = pairs.retrieved_batches(retrieved, 4, 4, alike=0.0)(torch.Generator().manual_seed(0))
    assert step(editor, laid, torch.Generator())["lips"].item() > 1e-3


def test_training_leaves_the_given_editor_and_learns(tmp_path, retrieved):
    torch.manual_seed(0)
    editor = EditorUNet(TINY_EDITOR)
    before = [p.clone() for p in editor.parameters()]
    settings = training.RetrievedSettings(str(tmp_path / "run"), steps=3, batch_size=4, references=3)
    learnt = training.train_retrieved(editor, retrieved, Judge(tiny_codec(), reader()), settings)
    assert all(torch.equal(a, b) for a, b in zip(before, editor.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before, learnt.parameters(), strict=True))


def test_batches_are_mixed_by_their_share():
    batches = training.mixed_batches(lambda g: "laid", lambda g: "plain", 0.7)
    drawn = [batches(step_generator(0, i)) for i in range(300)]
    assert 0.6 < drawn.count("laid") / 300 < 0.8


def test_squares_follow_a_moving_head_smoothly():
    rng, frames = np.random.default_rng(0), 50
    points = np.zeros((frames, 99, 2))
    from flashlips_core.train.batches.aligned import OF_99

    path = np.stack([np.linspace(0, 40, frames), np.zeros(frames)], 1)
    for index, place in {468: (170, 150), 473: (230, 150), 61: (180, 222), 291: (220, 222)}.items():
        points[:, OF_99[index]] = np.array(place) + path + rng.normal(0, 0.5, (frames, 2))
    squares = aligned_squares(points, np.ones(frames, bool))
    x = np.array([s.x for s in squares])
    assert np.abs(np.diff(x, 2)).max() < 0.2  # the points' own: about 1.2
    assert x[-1] - x[0] == pytest.approx(40, abs=1)
    assert wider(squares[0]).side == pytest.approx(1.25 * squares[0].side)
