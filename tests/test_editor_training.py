import copy
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY_EDITOR, encoded_frames, stored_crops, tiny_codec

from flashlips_core import checkpoint
from flashlips_core.cli import main
from flashlips_core.loading import load_network
from flashlips_core.models.editor_unet import EditorUNet
from flashlips_core.models.lip_encoder import LipEncoder, LipEncoderConfig
from flashlips_core.models.masks import lower_face_mask, mouth_mask
from flashlips_core.train.average import average
from flashlips_core.train.batches import augment
from flashlips_core.train.batches.frames import (
    draw_references,
    draw_rows,
    encode_looks,
    laid_upon,
    lip_weights,
    load_frames,
    window_cells,
    window_of,
)
from flashlips_core.train.detail import Critic, DetailSettings, train_detail
from flashlips_core.train.editor.pairs import (
    EditorBatch,
    EditorSettings,
    Judge,
    RefinementSettings,
    editor_batches,
    mini_config,
    moved,
    pair_target,
    refine_editor,
    train_editor,
)
from flashlips_core.train.loop.logs import read_rows
from flashlips_core.types import FlashLipsError


def test_targets_and_references_come_from_one_group_and_speakers_evenly():
    data, generator = encoded_frames(), torch.Generator().manual_seed(0)
    targets, near = draw_rows(data, 400, generator)
    references, poses = draw_references(data, targets, 2, generator)
    group = data.group_of
    assert references.shape == (400, 2, 4, 32, 32)
    assert (references[:, :, 0, 0, 0].numpy() == group[targets][:, None]).all()
    assert torch.equal(references[:, :, 0, 0, 0], poses[:, :, 0])
    assert (group[targets] == group[near]).all() and (targets != near).all()
    assert 0.4 < (group[targets] == 2).mean() < 0.6


def test_a_share_of_the_targets_are_rendered_heads():
    data = dataclasses.replace(encoded_frames(), groups_of_speaker={"a": [0], "b": [1], "head000": [2]})
    targets, _ = draw_rows(data, 1000, torch.Generator().manual_seed(0))
    shares = np.bincount(data.group_of[targets]) / len(targets)
    assert shares == pytest.approx([0.35, 0.35, 0.3], abs=0.05)
    alone = dataclasses.replace(data, groups_of_speaker={"head000": [2]})
    assert set(data.group_of[draw_rows(alone, 50, torch.Generator().manual_seed(0))[0]]) == {2}


def test_a_share_of_the_neighbours_has_the_targets_mouth_already():
    data, generator = encoded_frames(), torch.Generator().manual_seed(0)
    targets, near = draw_rows(data, 400, generator, alike=0.4)
    likeness = -(data.poses[data.neighbours] - data.poses[:, None]).square().sum(2)
    nearest = data.neighbours[np.arange(len(likeness)), likeness.argmax(1)]
    assert 0.13 < (near == targets).mean() < 0.27
    assert 0.13 < (near == nearest[targets]).mean() < 0.27


def test_faces_that_were_moved_turned_and_scaled_are_laid_upon_each_other():
    rng = np.random.default_rng(0)
    face = rng.random((11, 2)) - 0.5
    turns, scales, shifts = rng.normal(0, 0.2, 6), rng.uniform(0.8, 1.2, 6), rng.normal(0, 0.1, (6, 1, 2))
    turn = np.stack([np.stack([np.cos(turns), -np.sin(turns)], -1), np.stack([np.sin(turns), np.cos(turns)], -1)], 1)
    matrices = scales[:, None, None] * turn
    points = np.einsum("nij,lj->nli", matrices, face) + shifts + 0.5
    _, left = laid_upon(points)
    assert np.ptp(left, axis=0).max() < 1e-12


@pytest.mark.parametrize("cells", [32, 48])
def test_both_editor_stages_run_from_one_to_the_next(tmp_path, cells):
    data, judge = encoded_frames(cells), Judge(tiny_codec())
    masked = train_editor(EditorUNet(TINY_EDITOR), data, judge, EditorSettings(str(tmp_path / "a"), 2, batch_size=4))
    start = [p.clone() for p in masked.parameters()]
    refined = refine_editor(masked, data, judge, RefinementSettings(str(tmp_path / "b"), 2, batch_size=4))
    assert all(torch.equal(a, b) for a, b in zip(start, masked.parameters(), strict=False))
    assert any(not torch.equal(a, b) for a, b in zip(start, refined.parameters(), strict=False))


def test_an_editors_run_leaves_sheets_of_the_same_pairs(tmp_path):
    settings = EditorSettings(str(tmp_path), 4, batch_size=4, validate_every=2, ema=0.0)
    train_editor(EditorUNet(TINY_EDITOR), encoded_frames(), Judge(tiny_codec()), settings)
    first, last = (np.array(Image.open(tmp_path / "sheets" / f"{step:07d}.png")) for step in (2, 4))
    _, _, rows, columns = window_of(32)
    assert first.shape == (3 * 8 * rows, 4 * 8 * columns, 3)
    assert (first[: 8 * rows] == last[: 8 * rows]).all() and (first[16 * rows :] == last[16 * rows :]).all()
    assert (first[8 * rows : 16 * rows] != last[8 * rows : 16 * rows]).any()


def test_the_critics_loss_moves_the_critic_and_the_realism_loss_the_decoder():
    critic, (decoded, real) = Critic(), torch.rand(2, 2, 3, 64, 64) * 2 - 1
    decoded.requires_grad_(True)
    losses = critic.losses(decoded, real)
    assert torch.autograd.grad(losses["critic"], decoded, retain_graph=True, allow_unused=True) == (None,)
    losses["realism"].backward()
    assert decoded.grad.abs().sum() > 0 and all(p.grad is None for p in critic.parameters())


@pytest.mark.parametrize(("stage", "settings"), [(train_editor, EditorSettings), (refine_editor, RefinementSettings)])
@pytest.mark.parametrize("verdict", ["readback", "texture"])
def test_a_verdict_weighs_what_it_is_told_to(tmp_path, stage, settings, verdict):
    torch.manual_seed(0)
    reader = LipEncoder(LipEncoderConfig(channels=(8, 8), blocks=(1, 1), mouth_px=32)).eval().requires_grad_(False)
    start, judge, made = EditorUNet(TINY_EDITOR), Judge(tiny_codec(), reader), []
    for weight in (0.0, 5.0):
        config = settings(str(tmp_path / str(weight)), 2, batch_size=4, **{verdict: weight})
        made.append(stage(copy.deepcopy(start), encoded_frames(), judge, config).conv_out.weight)
    assert not torch.equal(*made)


def test_detail_training_changes_the_decoder_alone(tmp_path):
    editor, before = EditorUNet(TINY_EDITOR), tiny_codec().network.state_dict()
    whole, half = (
        train_detail(
            tiny_codec(), editor, encoded_frames(), DetailSettings(str(tmp_path), 3, batch_size=4, blend=blend)
        ).state_dict()
        for blend in (1.0, 0.5)  # the second finds the first one's run done
    )
    changed = {name.split(".")[0] for name, value in whole.items() if not torch.equal(value, before[name])}
    assert changed == {"decoder"}
    assert all(torch.allclose(half[name], (before[name] + whole[name]) / 2, atol=1e-6) for name in before)
    assert float(read_rows(tmp_path / "losses.csv")[-1]["anchor"]) > 0  # it has begun to leave what it was


@pytest.mark.parametrize("cells", [32, 48])
def test_the_small_network_suits_either_crop_size(cells):
    network = EditorUNet(mini_config(cells))
    rows, columns = network.window_slices((cells, cells))
    allowed = mouth_mask(cells, cells)[0, 0] > 0.1
    outside = torch.ones(cells, cells, dtype=torch.bool)
    outside[rows, columns] = False
    assert not (allowed & outside).any()


@pytest.mark.parametrize("cells", [32, 48, 64])
def test_a_pose_that_is_there_is_read_back(cells):
    """The mouth that the readback loss cuts out of the window is the one that the lip encoder sees in whole crops."""
    torch.manual_seed(0)
    codec, latents = tiny_codec(), torch.randn(2, 4, cells, cells)
    reader = LipEncoder(LipEncoderConfig(channels=(8, 8), blocks=(1, 1), mouth_px=32)).eval().requires_grad_(False)
    whole = reader(codec.decode(latents).clamp(-1.2, 1.2))
    judge = Judge(codec, reader)
    assert judge.readback(latents, whole) < 1e-4 < judge.readback(latents, whole + 1)


def test_losses_are_zero_for_a_perfect_edit_of_decodable_pixels():
    codec, latents = tiny_codec(), torch.randn(2, 4, 32, 32)
    pixels = codec.decode(window_cells(latents))
    lips = torch.tensor([[0.4, 0.5, 0.6, 0.7]] * 2)
    batch = EditorBatch(latents, latents, torch.zeros(2, 12), latents[:, None], None, pixels, pixels, lips, torch.zeros(2, 12))
    region, target = mouth_mask(32, 32).expand(2, -1, -1, -1), (latents, pixels)
    assert all(value < 1e-6 for value in Judge(codec).losses(latents, target, batch, region, slice(None)).values())
    worse = Judge(codec).losses(latents + 0.1 * torch.randn_like(latents), target, batch, region, slice(None))
    assert all(value > 1e-4 for value in worse.values())


def test_what_moved_is_told_from_noise():
    generator = torch.Generator().manual_seed(0)
    still = torch.rand(2, 3, 152, 144, generator=generator) - 0.5
    other = still + 0.1 * torch.randn(still.shape, generator=generator)
    other[1, :, 60:90, 50:90] += 0.3
    share = moved(still, other)
    assert share[0].mean() < 0.1 and share[1, :, 62:88, 52:88].min() > 0.95
    assert share[1, :, :40].mean() < 0.1


def test_a_pairs_target_is_the_neighbour_where_nothing_moved():
    data = encoded_frames()
    batch = editor_batches(data, 4)(torch.Generator().manual_seed(0))
    batch = dataclasses.replace(batch, z_near=batch.z_src.clone(), near_pixels=batch.pixels.clone())
    z_target, pixels = pair_target(batch, mouth_mask(32, 32))
    assert torch.equal(z_target, batch.z_near) and torch.equal(pixels, batch.near_pixels)


def test_the_mask_hides_the_lower_face_and_nothing_else():
    mask = lower_face_mask(32, 32)[0, 0]
    assert mask[20, 16] == 1 and mask[31, 16] == 1
    mouth = mouth_mask(32, 32)[0, 0]
    assert mouth[20, 16] == 1 and mouth[26, 16] == 1 and mouth[13].sum() == 0 and mouth[:, 6].sum() == 0
    assert (mouth <= mask).all()
    assert mask[10].sum() == 0 and mask[:, 0].sum() == 0 and mask[:, 31].sum() == 0


@pytest.mark.parametrize(("cells", "top", "left"), [(32, 12, 7), (48, 18, 10)])
def test_lip_weights_cover_the_lips(cells, top, left):
    assert window_of(cells)[:2] == (top, left)
    weights = lip_weights(torch.tensor([[0.4, 0.55, 0.6, 0.7]]), cells)[0, 0]
    row, column = round(0.62 * 8 * cells) - top * 8, round(0.5 * 8 * cells) - left * 8
    assert weights[row, column] == 1
    assert weights[5, column] == 0 and weights[row, 2] == 0


def test_every_second_look_takes_its_references_from_another_clip(tmp_path):
    reader = LipEncoder(LipEncoderConfig(channels=(8, 8), blocks=(1, 1), mouth_px=32)).eval()
    store, codec = stored_crops(tmp_path / "crops"), tiny_codec()
    encode_looks(store, codec, reader, tmp_path / "looks", 2, 5, seed=0, strength=0.0, crop_px=128)
    data = load_frames([tmp_path / "looks"])
    assert data.latents.shape == (20, 4, 16, 16) and len(data.references) == 4
    top, left, height, width = window_of(16)
    assert data.windows.shape == (20, 8 * height, 8 * width, 3)
    own = [data.latents[rows].float().mean() for rows in data.rows_of_group]
    dark, bright = own[0], own[2]
    seen = [group.float().mean() for group in data.references]
    for expected, value in zip((dark, bright, bright, dark), seen, strict=True):
        assert abs(value - expected) < 0.1 * abs(dark - bright)


@pytest.mark.parametrize("frames", [5, 10, 12, 40])
def test_no_target_is_among_its_own_references(tmp_path, frames):
    store, codec = stored_crops(tmp_path / "crops"), tiny_codec()
    store.images = (np.arange(24, dtype=np.uint8) * 10)[:, None, None, None] * np.ones((1, 64, 64, 3), np.uint8)
    reader = LipEncoder(LipEncoderConfig(channels=(8, 8), blocks=(1, 1), mouth_px=32)).eval()
    encode_looks(store, codec, reader, tmp_path / "looks", 1, frames, seed=0, strength=0.0, is_still=True, crop_px=128)
    data = load_frames([tmp_path / "looks"])
    assert len(data.rows_of_group[0]) == min(frames, 11)
    for group, rows in enumerate(data.rows_of_group):
        distance = (data.references[group][:, None] - data.latents[rows][None]).abs().amax((2, 3, 4))
        assert distance.min() > 0.001  # frames one step of brightness apart differ by 0.004


def test_looks_of_two_crop_sizes_are_not_joined(tmp_path):
    for name, cells in (("a", 32), ("b", 48)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "frames.npz", latents=np.zeros((1, 4, cells, cells), np.float16))
    with pytest.raises(FlashLipsError, match="256 and 384 px"):
        load_frames([tmp_path / "a", tmp_path / "b"])


def test_augmentation_moves_points_with_their_pixels():
    wide = torch.full((1, 3, 256, 256), -1.0)
    point = torch.tensor([[[0.6, 0.7]]])  # in the editor's crop
    place = ((point[0, 0] - 0.5) / 1.25 + 0.5) * 256
    x, y = int(place[0]), int(place[1])
    wide[:, :, y - 1 : y + 2, x - 1 : x + 2] = 1.0
    generator = torch.Generator().manual_seed(3)
    view = augment.draw_view(1, generator, 0.0)
    turned = dataclasses.replace(view, geometry=augment.draw_view(1, generator).geometry)
    crop = augment.apply(wide, turned, generator)
    row, column = divmod(int(crop[0].mean(0).argmax()), 256)
    moved = augment.move_points(point, turned)[0, 0] * 256
    assert abs(moved[0] - column) < 3 and abs(moved[1] - row) < 3


def test_the_mean_of_two_editors_lies_between_them_and_is_as_deep_as_the_last(tmp_path):
    shallow, deep = EditorUNet(TINY_EDITOR), EditorUNet(dataclasses.replace(TINY_EDITOR, decoder_blocks=(1, 2)))
    for name, network in (("shallow", shallow), ("deep", deep)):
        checkpoint.save(network, tmp_path / f"{name}.safetensors", "editor", {"crop_px": 384})
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("shallow", "deep")]
    out = tmp_path / "mean.safetensors"
    assert main(["average", *paths, "--out", str(out)]) == 0
    mean, info = load_network("editor", out), checkpoint.info(out)
    assert mean.config == deep.config and info.notes == {"crop_px": 384, "averaged": ["shallow", "deep"]}
    for name in ("conv_in.weight", "up.1.0.conv_1.weight"):
        expected = (shallow.state_dict()[name] + deep.state_dict()[name]) / 2
        torch.testing.assert_close(mean.state_dict()[name], expected, atol=1e-3, rtol=1e-2)  # stored in fp16
    checkpoint.save(deep, tmp_path / "other.safetensors", "editor", {"crop_px": 256})
    with pytest.raises(FlashLipsError, match="other was trained .* on other crops"):
        average([str(tmp_path / "other.safetensors"), *paths], out)
    with pytest.raises(FlashLipsError, match="two checkpoints"):
        average(paths[:1], out)
    with pytest.raises(FlashLipsError, match="[Cc]hoose another start"):
        average(paths[::-1], out)
