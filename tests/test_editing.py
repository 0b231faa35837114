"""Editing frames: batches, streams, what is decoded, what stays as it was, and memory that runs out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from toy_dubs import CROP_PX, assert_same_frames, make_poses, make_track

from flashlips_core import editing
from flashlips_core.compose import changed_region
from flashlips_core.editing import CropEditor, FrameEditor, FrameRows
from flashlips_core.media import read_frames
from flashlips_core.models.editor import Editor, EditorConfig, EditorContext
from flashlips_core.models.masks import mouth_mask
from flashlips_core.retrieval import fine_size
from flashlips_core.sharpen import UnsharpMask
from flashlips_core.steps import DubSettings
from flashlips_core.types import FlashLipsError


def crop_editor(lipsync, path, track, **settings):  # noqa: F811
    """Prepared with three of the clip's frames, for edits of frames as they are."""
    settings = DubSettings(start="frame", **settings)
    return lipsync.prepared(lipsync.look(path, track, given=[0, 5, 9]), settings, track.usual_side)


def edit(lipsync, frames, track, poses, batch):  # noqa: F811
    """The edited frames of a stream, all of them."""
    editor = crop_editor(lipsync, frames[0], track)
    rows = FrameRows(track.boxes, track.present, poses)
    return list(FrameEditor(editor, CROP_PX, batch)(iter(frames[1]), rows))


@pytest.fixture
def loaded(plain_clip):
    return plain_clip, list(read_frames(plain_clip))


def test_a_batch_of_8_equals_8_batches_of_1(lipsync, loaded):  # noqa: F811
    track, poses = make_track(), make_poses()
    assert_same_frames(edit(lipsync, loaded, track, poses, 8), edit(lipsync, loaded, track, poses, 1))


@torch.inference_mode()
def test_streamed_frames_equal_the_whole_clip_at_once(lipsync, loaded):  # noqa: F811
    from flashlips_core.compose import alpha_from_latents, cut_batch, paste

    path, frames = loaded
    track, poses = make_track(), make_poses()
    crops = cut_batch(frames, track.boxes, CROP_PX)
    editor = crop_editor(lipsync, path, track)
    source = lipsync.codec.encode(crops)
    edited = editor.edit(source, poses.values)
    alpha, rgb = alpha_from_latents(source, edited, CROP_PX), lipsync.codec.decode(edited).clamp(-1, 1)
    whole = [paste(f, b, r, a) for f, b, r, a in zip(frames, track.boxes, rgb, alpha, strict=True)]
    streamed = edit(lipsync, loaded, track, poses, 5)
    for a, b in zip(whole, streamed, strict=True):
        assert (
            max(int(np.abs(x.astype(int) - y).max()) for x, y in zip(a.planes, b.planes, strict=True)) <= 1
        )  # one rounding step
    assert any(not np.array_equal(a.planes[0], b.planes[0]) for a, b in zip(frames, streamed, strict=True))


def test_decoding_the_changed_region_equals_decoding_everything(lipsync, monkeypatch):  # noqa: F811
    generator = torch.Generator().manual_seed(3)
    crops = torch.rand(2, 3, 128, 128, generator=generator) * 2 - 1
    editor = CropEditor(lipsync.codec, OneCellEditor(), crops)
    editor.unsharp = UnsharpMask(0.4, 1.5)
    rgb, alpha = editor(crops, torch.zeros(2, 12))
    region = changed_region(alpha, 7, 8)
    assert region is not None and (region[2] - region[0]) * (region[3] - region[1]) < 16 * 16
    with torch.inference_mode():
        whole = editor.unsharp(lipsync.codec.decode(editor.edit(lipsync.codec.encode(crops), torch.zeros(2, 12)))).clamp(-1, 1)
    near = nn.functional.max_pool2d(alpha, 15, 1, 7) > 0  # as far as pasting reads
    assert torch.allclose(torch.where(near, rgb, 0), torch.where(near, whole, 0), atol=2e-5)


@torch.inference_mode()
def test_edits_stay_inside_the_mouths_region(lipsync):  # noqa: F811
    crops = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(3)) * 2 - 1
    editor = CropEditor(lipsync.codec, lipsync.editor, crops)
    source = lipsync.codec.encode(crops)
    changed = (editor.edit(source, torch.ones(2, 12)) != source).any(1)
    allowed = mouth_mask(*source.shape[-2:])[0] > 0
    assert changed.any() and not (changed & ~allowed).any()
    raw = lipsync.editor(source, editor.context, torch.ones(2, 12))
    middle = mouth_mask(*source.shape[-2:]).expand_as(source) == 1
    assert torch.allclose(editor.edit(source, torch.ones(2, 12))[middle], raw[middle])


def test_softness_is_measured_once_for_a_clip_and_can_be_left(lipsync, loaded, monkeypatch):  # noqa: F811
    path, _ = loaded
    track, shares = make_track(), []

    def mask(edited, shown, region, scale, share):
        assert edited.shape == shown.shape and shown.shape[-2:] == region.shape and len(shown) == 3
        shares.append((share, scale))
        return UnsharpMask(0.25)

    monkeypatch.setattr(editing, "matching_mask", mask)
    assert crop_editor(lipsync, path, track).unsharp == UnsharpMask(0.25)
    assert crop_editor(lipsync, path, track, sharpen=0.0).unsharp == UnsharpMask(0.0)
    assert shares == [(1.0, pytest.approx(CROP_PX / track.usual_side))]
    with pytest.raises(FlashLipsError, match="share from 0"):
        crop_editor(lipsync, path, track, sharpen=1.5)


class OneCellEditor(Editor):
    """Changes one latent cell and nothing else."""

    def __init__(self):
        super().__init__(EditorConfig())
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)

    def prepare_references(self, z_ref, poses=None):
        return EditorContext(z_ref, poses)

    def residual(self, z_masked, context, poses):
        change = torch.zeros_like(z_masked)
        change[..., 9, 5] = 1
        return change


def test_pixels_outside_alpha_are_bit_identical(lipsync, loaded):  # noqa: F811
    path, frames = loaded
    track = make_track()
    editor = CropEditor(lipsync.codec, OneCellEditor(), lipsync.look(path, track, given=[0]).references)
    edited = list(FrameEditor(editor, 128, 4)(iter(frames), FrameRows(track.boxes, track.present, make_poses())))
    for before, after, box in zip(frames, edited, track.boxes, strict=True):
        changed = before.planes[0] != after.planes[0]
        assert changed.any()
        rows, columns = changed.nonzero()
        side = (box[2] - box[0]) / 16  # one latent cell in frame pixels; the edit is in row 9, column 5
        assert rows.min() >= box[1] + 5 * side - 1 and rows.max() <= box[1] + 14 * side + 1
        assert columns.min() >= box[0] + 1 * side - 1 and columns.max() <= box[0] + 10 * side + 1


def test_out_of_memory_is_tried_once_more_at_half_the_batch(lipsync, loaded, caplog):  # noqa: F811
    track, poses = make_track(), make_poses()
    expected = edit(lipsync, loaded, track, poses, 8)
    for limit, error in ((4, None), (3, FlashLipsError)):
        editor = FullMemory(crop_editor(lipsync, loaded[0], track), limit)
        frames = FrameEditor(editor, CROP_PX, 8)(iter(loaded[1]), FrameRows(track.boxes, track.present, poses))
        if error is None:
            assert_same_frames(list(frames), expected)
            assert editor.failures == 1 and "going on with 4" in caplog.text
        else:
            with pytest.raises(error, match="also with 4 frames"):
                list(frames)


class FullMemory:
    """A crop editor on a device that holds ``limit`` crops."""

    def __init__(self, editor, limit):
        self.editor, self.limit, self.failures = editor, limit, 0

    def __call__(self, crops, poses, side):
        if len(crops) > self.limit:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.editor(crops, poses, side)


def test_a_half_precision_error_is_not_mistaken_for_full_memory(lipsync, loaded):  # noqa: F811
    class Broken(FullMemory):
        def __call__(self, crops, poses, side):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    rows = FrameRows(make_track().boxes, make_track().present, make_poses())
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        list(FrameEditor(Broken(None, 0), CROP_PX, 8)(iter(loaded[1]), rows))


class OneMouthCell(OneCellEditor):
    """Changes the cell at 11/16 down and half-way across, inside the mouth's ellipse, by ``change``."""

    change = 1.0

    def forward(self, z, context, poses):
        changed = z.clone()
        changed[..., 11 * z.shape[-2] // 16, z.shape[-1] // 2] += self.change
        return changed


def keeping(lipsync, size=128, change=1.0):  # noqa: F811
    """A crop editor that keeps detail, with references of ``size`` pixels."""
    editor = OneMouthCell()
    editor.change = change
    return CropEditor(lipsync.codec, editor, noise_crops(1, size, seed=9), keeps_detail=True)


def noise_crops(count, size, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) - 0.5


def test_crops_that_need_no_edit_come_back_untouched(lipsync):  # noqa: F811
    crops, poses = noise_crops(4, 128), torch.zeros(4, 12)
    laid = torch.zeros(4, 1, 128, 128)
    laid[:, :, 70:100, 40:90] = 0.5
    need = torch.tensor([0.0, 1.0, 0.0, 0.5])
    editor = keeping(lipsync)
    rgb, alpha = editor(crops, poses, laid=laid, need=need)
    for row in (0, 2):
        assert torch.equal(rgb[row], crops[row]) and torch.equal(alpha[row], (8 * laid[row]).clamp(max=1))
    for row in (1, 3):
        alone = editor(crops[row : row + 1], poses[:1], laid=laid[:1], need=need[row : row + 1])
        assert torch.allclose(rgb[row], alone[0][0], atol=1e-5) and torch.allclose(alpha[row], alone[1][0], atol=1e-5)
        assert not torch.equal(rgb[row], crops[row])
    assert torch.equal(editor(crops, poses, need=torch.zeros(4))[0], crops)
    whole, all_of_it = editor(crops, poses), editor(crops, poses, need=torch.ones(4))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole, all_of_it, strict=True))


def test_half_a_need_is_half_the_change(lipsync):  # noqa: F811
    crops, poses, changes = noise_crops(1, 128), torch.zeros(1, 12), []
    for share in (0.5, 1.0):
        rgb, _ = keeping(lipsync)(crops, poses, need=torch.tensor([share]))
        changes.append((rgb - crops).abs().sum())
    assert 0.3 * changes[1] < changes[0] < 0.7 * changes[1]


@pytest.mark.parametrize("side", [128, 150, 176, 384])
def test_larger_crops_than_the_references_change_where_the_latents_did(lipsync, side):  # noqa: F811
    """The edit is made at the references' size and drawn at the crop's: its place must not move."""
    size = fine_size(128, side)
    crops = noise_crops(2, size)
    rgb, alpha = keeping(lipsync)(crops, torch.zeros(2, 12))
    assert rgb.shape == crops.shape and alpha.shape == (2, 1, size, size)
    change, ticks = (rgb - crops).abs().sum(1)[0], (torch.arange(size) + 0.5) / size
    down, across = float((change.sum(1) * ticks).sum() / change.sum()), float((change.sum(0) * ticks).sum() / change.sum())
    assert down == pytest.approx(11.5 / 16, abs=0.02) and across == pytest.approx(8.5 / 16, abs=0.02)
    quiet = (rgb == crops).all(1)
    assert quiet[:, : round(0.3 * size)].all()  # bit by bit


def test_what_the_codec_cannot_draw_stays_where_an_edit_changes_little(lipsync):  # noqa: F811
    """A small edit adds the difference of two decodes to the crop; a large one replaces it."""
    crops, poses = noise_crops(1, 256), torch.zeros(1, 12)
    place = (0, slice(None), slice(170, 192), slice(126, 148))

    def kept_detail(change):
        rgb, _ = keeping(lipsync, change=change)(crops, poses)
        pair = torch.stack([x[place].flatten() for x in (rgb, crops)])
        return float(torch.corrcoef(pair)[0, 1])

    assert kept_detail(0.3) > 0.9 > kept_detail(40.0)


def test_an_edit_stays_in_its_area(lipsync):  # noqa: F811
    area = torch.zeros(2, 1, 32, 32)
    area[1] = 1
    crops = noise_crops(2, 128)
    rgb, alpha = keeping(lipsync)(crops, torch.zeros(2, 12), area=area)
    assert torch.allclose(rgb[0], crops[0], atol=1e-6) and not alpha[0].any() and alpha[1].any()
