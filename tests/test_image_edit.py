"""Editing images and latents in the core: what changes, what stays, what is refused."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import partial

import pytest
import torch
from toy_dubs import CROP_PX, make_poses, make_track

from flashlips_core import editing
from flashlips_core.checks import check_whole_track
from flashlips_core.editing import CropEditor
from flashlips_core.images import edit as image_edit
from flashlips_core.images import latents as image_latents
from flashlips_core.images.edit import edit_images
from flashlips_core.images.frames import cut_images
from flashlips_core.images.latents import edit_latents
from flashlips_core.media import probe
from flashlips_core.types import FlashLipsError


def pictures(count: int = 10) -> torch.Tensor:
    """Images of the size that ``make_track`` knows, as ComfyUI lays them out and the core reads them."""
    images = torch.rand(count, 48, 64, 3, generator=torch.Generator().manual_seed(0))
    return images.movedim(-1, 1)


# ---- images ----------------------------------------------------------------------------------------------------------------


def test_images_change_only_in_the_box_of_frames_with_a_face(lipsync) -> None:
    images, track = pictures(), make_track(10, absent=(3,))
    steps, shown = [], []
    callbacks = {"progress": lambda *step: steps.append(step), "show": shown.append}
    edited = edit_images(lipsync, images, track, make_poses(10), batch=4, **callbacks)
    assert edited.shape == images.shape and edited.stride() == images.stride()
    assert torch.equal(edited[3], images[3]) and steps[-1] == (10, 10)
    assert all(crop.shape == (3, CROP_PX, CROP_PX) for crop in shown) and len(shown) == 3
    changed = (edited != images).any(1)
    assert changed.any() and not changed[:, :, :9].any() and not changed[:, :2].any()  # boxes start at 11.3, 4.6


def test_a_batch_of_images_does_not_depend_on_its_parts(lipsync) -> None:
    images, track, poses = pictures(), make_track(10), make_poses(10)
    references = cut_images(images[:2], track.boxes[:2], CROP_PX) * 2 - 1
    whole = edit_images(lipsync, images, track, poses, references, batch=10)
    parts = edit_images(lipsync, images, track, poses, references, batch=3)
    assert torch.allclose(whole, parts, atol=1e-4)


def test_images_that_are_not_the_tracked_ones_are_refused(lipsync, monkeypatch) -> None:
    images, track, poses = pictures(), make_track(10), make_poses(10)

    def refused(words: str, *given: object) -> None:
        with pytest.raises(FlashLipsError, match=words):
            edit_images(lipsync, *given)

    refused("track has 12 frames, the image batch 10", images, make_track(12), poses)
    refused("64x48 pixels, the images have 48x64", images.mT, track, poses)
    refused("No face in any frame", images, make_track(10, absent=tuple(range(10))), poses)
    refused("32x32 pixels, the editor sees crops of 64x64", images, track, poses, torch.zeros(4, 3, 32, 32))
    monkeypatch.setattr(image_edit, "LARGEST_BATCH_BYTES", 100_000)
    refused("10 images of 64x48 take 0.0 GB.*give the clip as a VIDEO to Lip-Sync Video", images, track, poses)


# ---- latents ---------------------------------------------------------------------------------------------------------------


def latents(count: int, seed: int = 0, side: int = 8) -> torch.Tensor:
    return torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(seed))


def test_edited_latents_are_those_of_the_crop_editor(lipsync) -> None:
    crops = torch.rand(5, 3, CROP_PX, CROP_PX, generator=torch.Generator().manual_seed(0)) * 2 - 1
    references, poses = crops[:2], make_poses(5)
    shown = lipsync.encode_lips(references)
    with torch.inference_mode():
        target, seen = lipsync.codec.encode(crops), lipsync.codec.encode(references)
        expected = CropEditor(lipsync.codec, lipsync.editor, references, shown).edit(target, poses.values)
    edited = edit_latents(lipsync.editor, target, seen, poses, replace(poses, values=shown), batch=2)
    assert torch.allclose(edited, expected, atol=1e-5) and not torch.allclose(edited, target, atol=1e-2)


def test_strength_leads_from_the_target_to_the_edit(lipsync) -> None:
    target, references, poses = latents(3), latents(2, 1), make_poses(5)  # two poses more than targets
    none, half, full = (edit_latents(lipsync.editor, target, references, poses, strength=s) for s in (0.0, 0.5, 1.0))
    assert torch.equal(none, target) and torch.allclose(half, (target + full) / 2, atol=1e-5)
    assert not torch.equal(full, target)


def test_latents_and_poses_that_do_not_fit_are_refused(lipsync) -> None:
    def refused(words: str, *given: object) -> None:
        with pytest.raises(FlashLipsError, match=words):
            edit_latents(lipsync.editor, *given)

    refused("references are 16x16 latent cells, the target 8x8", latents(3), latents(2, side=16), make_poses(3))
    refused("target must be latents of SDXL's kind", torch.zeros(3, 16, 8, 8), latents(2), make_poses(3))
    refused("Got 2 poses for 3 target latents", latents(3), latents(2), make_poses(2))
    refused("Got 3 reference poses for 2 references", latents(3), latents(2), make_poses(3), make_poses(3))


# ---- memory ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [4, 3])
def test_images_and_latents_are_tried_once_more_at_half_the_batch(lipsync, monkeypatch, caplog, limit) -> None:
    images, track, poses, target = pictures(), make_track(10), make_poses(10), latents(10)
    edit_frames = partial(edit_images, start="frame")  # where no mouth is laid, every crop needs an edit
    given = ((edit_frames, (lipsync, images, track, poses)), (edit_latents, (lipsync.editor, target, latents(2, 1), poses)))
    wanted = [edit(*parts, batch=8) for edit, parts in given]
    edit_some = editing.edit_once

    def full_memory(editor, context, source, *rest):
        if len(source) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return edit_some(editor, context, source, *rest)

    for module in (editing, image_latents):
        monkeypatch.setattr(module, "edit_once", full_memory)
    for (edit, parts), whole in zip(given, wanted, strict=True):
        if limit == 3:
            with pytest.raises(FlashLipsError, match="also with 4 frames at once"):
                edit(*parts, batch=8)
            continue
        caplog.clear()
        assert torch.allclose(edit(*parts, batch=8), whole, atol=1e-4)
        assert caplog.text.count("going on with 4") == 1


# ---- tracks ----------------------------------------------------------------------------------------------------------------


def test_a_track_of_another_clip_is_told_by_size_rate_and_length(plain_clip) -> None:
    clip = probe(plain_clip)
    check_whole_track(make_track(25), clip)
    for track, words in (
        (make_track(25, size=(640, 360)), "of 640x360 pixels, clip.mp4 has 64x48"),
        (make_track(25, fps=Fraction(30)), "of 30 frames per second, clip.mp4 has 25"),
        (make_track(40), "track has 40 frames, clip.mp4 has 25"),
    ):
        with pytest.raises(FlashLipsError, match=words):
            check_whole_track(track, clip)
