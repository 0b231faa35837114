"""The stage "distil": what it draws, that the student comes to do what its teacher does, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY_CODEC, TINY_EDITOR, encoded_frames, tiny_codec

from flashlips_core import checkpoint
from flashlips_core.loading import STAGE_1, load_part
from flashlips_core.models.codec_mini import MiniCodec
from flashlips_core.models.editor_transformer import TRANSFORMER_TINY, EditorTransformer
from flashlips_core.models.editor_unet import EditorUNet
from flashlips_core.models.masks import mouth_mask
from flashlips_core.train.editor import distil
from flashlips_core.train.loop.logs import read_rows
from flashlips_core.train.presets import run_stage
from flashlips_core.types import FlashLipsError


def teacher() -> EditorUNet:
    """A tiny editor that changes something, frozen."""
    torch.manual_seed(1)
    editor = EditorUNet(TINY_EDITOR).requires_grad_(False).eval()
    editor.conv_out.weight.add_(0.1 * torch.randn_like(editor.conv_out.weight))
    return editor


class Shift(torch.nn.Module):
    """A teacher that is quickly learnt from: the pose's first numbers are the residual, everywhere."""

    def prepare_references(self, references, poses=None):
        return None

    def forward(self, z_input, context, poses):
        return z_input + poses[:, :4, None, None]


@pytest.fixture
def tiny_student(monkeypatch):
    monkeypatch.setitem(distil.STUDENTS, "tiny", lambda cells: EditorTransformer(TRANSFORMER_TINY))


def test_a_clips_frames_references_and_own_poses_come_together():
    data, generator = encoded_frames(), torch.Generator().manual_seed(0)
    make = distil.clip_batches(data, 16, 3)
    owns = []
    for _ in range(20):
        batch = make(generator)
        assert batch.frames.shape == (16, 4, 32, 32) and batch.references.shape == (2, 3, 4, 32, 32)
        rows = [int((data.latents.float() == frame).all((1, 2, 3)).nonzero()) for frame in batch.frames]
        of_clip = batch.references[:, 0, 0, 0, 0].repeat_interleave(8)
        assert (data.group_of[rows] == of_clip.numpy()).all()
        own = (batch.poses[:, None] == data.poses[None]).all(2)
        owns += own.any(1).tolist()
        assert all(data.group_of[int(row.nonzero())] == group for row, group in zip(own, of_clip, strict=True) if row.any())
    assert 0.35 < np.mean(owns) < 0.65


@pytest.mark.parametrize("size", [0, 4, 12])
def test_a_batch_that_does_not_divide_into_clips_is_refused(size):
    with pytest.raises(FlashLipsError, match="multiple of 8"):
        distil.clip_batches(encoded_frames(), size, 2)


def test_the_student_comes_to_do_what_the_teacher_does(tmp_path, tiny_student):
    settings = distil.DistilSettings(str(tmp_path), steps=60, batch_size=8, lr=3e-3, log_every=10, validate_every=30)
    distil.distil_editor(Shift(), distil.STUDENTS["tiny"](32), encoded_frames(), tiny_codec(), settings)
    losses = [float(row["latent"]) for row in read_rows(tmp_path / "losses.csv")]
    assert losses[-1] < 0.5 * losses[0]
    first, last = (np.array(Image.open(tmp_path / "sheets" / f"{step:07d}.png")) for step in (30, 60))
    height = first.shape[0] // 3
    assert (first[: 2 * height] == last[: 2 * height]).all()  # the frames and the teacher's edits
    assert (first[2 * height :] != last[2 * height :]).any()


def test_a_teacher_has_nothing_to_teach_itself():
    batch = distil.clip_batches(encoded_frames(), 8, 2)(torch.Generator().manual_seed(0))
    assert distil.distillation_step(teacher())(teacher(), batch, torch.Generator())["latent"] == 0


@pytest.mark.parametrize("name", ["transformer-mini", "unet-mini"])
@pytest.mark.parametrize("cells", [32, 48])
def test_students_edit_all_that_a_mask_free_edit_may_change(name, cells):
    with torch.device("meta"):
        student = distil.STUDENTS[name](cells)
        latents = torch.zeros(1, 4, cells, cells)
        context = student.prepare_references(latents[None], torch.zeros(1, 1, 12))
        assert student(latents, context, torch.zeros(1, 12)).shape == latents.shape
    outside = torch.ones(cells, cells, dtype=torch.bool)
    outside[student.window_slices((cells, cells))] = False
    assert not ((mouth_mask(cells, cells)[0, 0] > 0.1) & outside).any()


def run_folder(tmp_path, monkeypatch, role: str = "editor", crop_px: int = 256):
    """A run with a codec, a teacher and looks."""
    checkpoint.save(MiniCodec(TINY_CODEC), tmp_path / "codec.safetensors", "codec", {})
    checkpoint.save(teacher(), tmp_path / "editor.safetensors", role, {"crop_px": crop_px, "codec": "bundled-fast"})
    monkeypatch.setattr(distil, "encoded_looks", lambda run: encoded_frames())
    return tmp_path


def run_distil(folder, **options):
    return run_stage("distil", folder, folder, folder, {"steps": 1, "batch_size": 8, "network": "tiny"} | options)


def test_the_stage_leaves_an_editor_that_says_what_it_belongs_to(tmp_path, monkeypatch, tiny_student):
    path = run_distil(run_folder(tmp_path, monkeypatch))
    part = load_part("editor", path)
    assert path.name == "editor-distilled.safetensors" and isinstance(part.network, EditorTransformer)
    assert (part.crop_px, part.codec, part.notes["teacher"]) == (256, "bundled-fast", "editor")
    assert isinstance(load_part("editor", tmp_path / "editor.safetensors").network, EditorUNet)  # the teacher is still there


def test_a_pupil_goes_on_learning(tmp_path, monkeypatch, tiny_student):
    folder = run_folder(tmp_path, monkeypatch)
    pupil = EditorTransformer(TRANSFORMER_TINY)
    checkpoint.save(pupil, folder / "pupil.safetensors", "editor", {})
    path = run_distil(folder, start=str(folder / "pupil.safetensors"), lr=1e-9)
    for ours, theirs in zip(load_part("editor", path).network.parameters(), pupil.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-4)  # the file rounds to 16 bits
    with pytest.raises(FlashLipsError, match="to start from is not a 'tiny' for these looks"):
        run_distil(folder, start=str(folder / "editor.safetensors"))


def test_the_teacher_may_be_any_editor_of_the_looks_size(tmp_path, monkeypatch, tiny_student):
    folder = run_folder(tmp_path, monkeypatch)
    (folder / "editor.safetensors").rename(folder / "mine.safetensors")
    path = run_distil(folder, teacher=str(folder / "mine.safetensors"))
    assert checkpoint.info(path).notes["teacher"] == "mine"
    with pytest.raises(FlashLipsError, match="No editor at"):
        run_distil(folder)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({"role": STAGE_1}, {}, "choose a refined editor"),
        ({"crop_px": 384}, {}, "edits crops of 384 px, the looks have 256"),
        ({}, {"network": "huge"}, "No editor is called 'huge'; choose network=transformer-mini or unet-mini"),
    ],
)
def test_what_cannot_be_distilled_is_said(tmp_path, monkeypatch, given, options, message, tiny_student):
    with pytest.raises(FlashLipsError, match=message):
        run_distil(run_folder(tmp_path, monkeypatch, **given), **options)
