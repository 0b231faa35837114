"""The paper's losses and steps on toy networks and pictures."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from tiny import TINY_EDITOR, tiny_codec
from torch import nn

from flashlips_core.face.expression import NUM_FEATURES
from flashlips_core.models.editor_transformer import TRANSFORMER_TINY, EditorTransformer
from flashlips_core.models.editor_unet import EditorUNet
from flashlips_core.models.lip_encoder import LipEncoder, LipEncoderConfig, LipTeacher, LipTeacherConfig
from flashlips_core.models.masks import lower_face_mask
from flashlips_core.models.vgg import VGG19_CONVS, VGGFeatures
from flashlips_core.train.batches.pictures import PictureSource, inside, picture_batches
from flashlips_core.train.editor import paper
from flashlips_core.train.editor.losses import IdentityLoss, PerceptualLoss
from flashlips_core.train.loop.logs import read_rows
from flashlips_core.train.loop.trainer import TrainConfig, Trainer, step_generator
from flashlips_core.types import FlashLipsError

PX = 64
EDITORS = {"unet": lambda: EditorUNet(TINY_EDITOR), "transformer": lambda: EditorTransformer(TRANSFORMER_TINY)}


class Pixels(nn.Module):
    """An embedding that is the picture itself, small."""

    name, is_stand_in = "pixels", True

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 8).flatten(1)


class Store:
    """What ``CropStore`` gives, in memory: clips of faces that are one colour, with a lip outline."""

    def __init__(self, clips=3, frames=4, side=80):
        generator = torch.Generator().manual_seed(0)
        self.clip_of, self.frame_of = np.repeat(np.arange(clips), frames), np.tile(np.arange(frames), clips)
        self.clip_ids, self.speakers = np.array([f"c{i}" for i in range(clips)]), np.array(["a", "a", "b"][:clips])
        angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
        around = np.stack([0.5 - 0.1 * np.cos(angle), 0.7 + 0.05 * np.sin(angle)], -1)
        order = [*range(11), *range(19, 10, -1)]  # MediaPipe's: below from the left, then above from the left
        lips = np.empty((20, 2))
        lips[order] = around
        self.landmarks = np.tile(np.concatenate([lips, lips])[None], (clips * frames, 1, 1)).astype(np.float32)
        colours = torch.rand(clips, 3, 1, 1, generator=generator)[self.clip_of]
        self.images = (colours + 0.3 * torch.rand(clips * frames, 3, side, side, generator=generator)).clamp(0, 1) * 2 - 1

    def __len__(self):
        return len(self.clip_of)

    def batch(self, rows):
        return self.images[rows]


def randomised(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():  # last layers start at zero, which would hide gradients
        nn.init.normal_(parameter, std=0.05, generator=generator)
    return network


def judge(recompute=False):
    codec, vgg = tiny_codec(), VGGFeatures(VGG19_CONVS[:2], mean=(0.5, 0.5, 0.5))
    return paper.PaperJudge(codec, PerceptualLoss(vgg), IdentityLoss(Pixels()), recompute)


def lip_encoder():
    torch.manual_seed(1)
    return LipEncoder(LipEncoderConfig(channels=(8, 8), blocks=(1, 1), mouth_px=32)).eval().requires_grad_(False)


def teacher():
    torch.manual_seed(2)
    return LipTeacher(LipTeacherConfig(NUM_FEATURES, mouth_px=32))


def source():
    store = Store()
    random = np.random.default_rng(0)
    return PictureSource([store], [random.normal(size=(len(store), NUM_FEATURES)).astype(np.float32)])


def batch_of(count=4, references=2):
    return picture_batches(source(), count, references, PX)(torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", EDITORS)
def test_every_term_of_the_paper_gives_gradients_and_has_the_papers_weight(kind, tmp_path):
    network = randomised(EDITORS[kind]())
    losses = paper.masked_step(judge(), paper.read_by(lip_encoder()))(network, batch_of(), torch.Generator())
    weights = [p for p in network.parameters() if p.ndim > 1]
    for name, value in losses.items():
        gradients = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
        moved = [g is not None and float(g.abs().max()) > 0 for g in gradients]
        assert sum(moved) > 0.9 * len(moved), name
    trainer = Trainer(network, TrainConfig(str(tmp_path), 1, weights=paper.paper_weights()))
    stated = {"latent_l1": 0.1, "latent_l1_masked": 0.1, "pixel_l1_masked": 10, "pixel_l1_lips": 100}
    stated |= {"perceptual": 50, "identity": 5}
    assert set(losses) == set(stated)
    assert float(trainer._total(losses).detach()) == pytest.approx(
        sum(stated[name] * float(value.detach()) for name, value in losses.items())
    )


def test_a_perfect_edit_costs_nothing_and_masked_terms_see_the_mask_alone():
    batch, judged = batch_of(), judge()
    z_src, _ = paper.masked_latents(judged.codec, batch.images)
    images = judged.codec.decode(z_src)
    assert all(float(value) < 1e-5 for value in judged.losses(z_src, z_src, images, batch.lips).values())
    mask = lower_face_mask(PX, PX)
    elsewhere = judged.losses(z_src, z_src, images + (1 - mask), batch.lips * mask)
    assert elsewhere["pixel_l1_masked"] < 1e-5 and elsewhere["pixel_l1_lips"] < 1e-5
    assert elsewhere["perceptual"] > 1e-4 and elsewhere["identity"] > 1e-4


def test_what_is_hidden_does_not_reach_the_editor():
    judged, batch = judge(), batch_of()
    other = batch.images + 0.5 * lower_face_mask(PX, PX)
    z_src, z_masked = paper.masked_latents(judged.codec, batch.images)
    z_other, z_other_masked = paper.masked_latents(judged.codec, torch.where(lower_face_mask(PX, PX) > 0.99, other, batch.images))
    assert not torch.equal(z_src, z_other)
    assert torch.equal(z_masked, z_other_masked)


def test_decoding_crop_by_crop_gives_the_same_losses_and_gradients():
    results = []
    for recompute in (False, True):
        network = randomised(EditorUNet(TINY_EDITOR))
        losses = paper.masked_step(judge(recompute), paper.read_by(lip_encoder()))(network, batch_of(), torch.Generator())
        sum(losses.values()).backward()
        results.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-5)


def test_the_teacher_learns_from_the_reconstruction():
    network = paper.TaughtEditor(randomised(EditorUNet(TINY_EDITOR)), teacher())
    step = paper.masked_step(judge(), paper.read_by_teacher)
    losses = step(network, batch_of(), torch.Generator().manual_seed(0))
    assert "spread" in losses
    losses["pixel_l1_lips"].backward()
    assert all(float(p.grad.abs().max()) > 0 for p in network.teacher.linear.parameters())
    assert all(float(p.grad.abs().max()) > 0 for p in network.teacher.cnn.parameters())
    with pytest.raises(FlashLipsError, match="batch_size=2 or more"):
        paper.train_masked(network, picture_batches(source(), 1, 1, PX), judge(), paper.read_by_teacher, TrainConfig("x", 1))


def test_a_variant_whose_pose_is_not_read_back_becomes_the_frame_itself(monkeypatch):
    network, seen = randomised(EditorUNet(TINY_EDITOR)), {}
    judged = judge()
    original = paper.PaperJudge.losses

    def losses(self, z_hat, z_target, images, lips):
        seen.update(images=images)
        return original(self, z_hat, z_target, images, lips)

    monkeypatch.setattr(paper.PaperJudge, "losses", losses)
    batch = batch_of()
    step = paper.refinement_step(judged, lip_encoder(), copy.deepcopy(network))
    for limit, is_same in ((0.0, True), (1e9, False)):
        monkeypatch.setattr(paper, "READBACK_LIMIT", limit)
        step(network, batch, torch.Generator())
        own, variant = seen["images"].chunk(2)
        assert torch.equal(own, batch.images) and torch.equal(own, variant) == is_same
    hidden = lower_face_mask(PX, PX)
    assert torch.equal(own * (hidden == 0), variant * (hidden == 0))  # the mouth alone differs


@pytest.mark.parametrize("kind", EDITORS)
def test_both_stages_run_one_after_the_other_and_leave_sheets(tmp_path, kind):
    config = TrainConfig(str(tmp_path / "a"), 2, weights=paper.paper_weights(), recompute=True)
    judged = judge(recompute=True)
    batches = picture_batches(source(), 2, 1, PX)
    masked = paper.train_masked(randomised(EDITORS[kind]()), batches, judged, paper.read_by(lip_encoder()), config)
    start = [p.clone() for p in masked.parameters()]
    second = dataclasses.replace(config, run_dir=str(tmp_path / "b"))
    refined = paper.train_mask_free(masked, batches, judged, lip_encoder(), second)
    assert all(torch.equal(a, b) for a, b in zip(start, masked.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(start, refined.parameters(), strict=True))
    for folder in ("a", "b"):
        assert (tmp_path / folder / "sheets" / "0000002.png").is_file()
        assert float(read_rows(tmp_path / folder / "losses.csv")[-1]["identity"]) > 0


def test_steps_name_no_device():
    """With every tensor on another device than the default one, a forgotten device would be an error."""
    device = torch.device("meta")
    network, judged = randomised(EditorUNet(TINY_EDITOR)).to(device), judge()
    for part in (judged.codec, judged.perceptual, judged.identity):
        part.to(device)
    values = {name: None if value is None else value.to(device) for name, value in vars(batch_of()).items()}
    reader = lip_encoder().to(device)
    from flashlips_core.train.batches.pictures import PictureBatch
    from flashlips_core.train.loop.trainer import _StepModule

    for step in (paper.masked_step(judged, paper.read_by(reader)), paper.refinement_step(judged, reader, network)):
        losses = _StepModule(network, step, device, False)(PictureBatch(**values), torch.Generator())
        assert all(value.device.type == "meta" for value in losses.values())


def test_lips_lie_inside_their_outline_in_the_augmented_crop():
    batch = batch_of()
    area = batch.lips.mean((1, 2, 3))
    assert batch.images.shape == (4, 3, PX, PX) and batch.references.shape == (4, 2, 3, PX, PX)
    assert ((area > 0.008) & (area < 0.03)).all()  # an ellipse of 0.1 by 0.05 covers 0.0157
    square = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.75, 0.5], [0.25, 0.5]]])
    mask = inside(square, 8)[0, 0]
    assert mask[2:4, 2:6].all() and mask.sum() == 8


def test_references_are_other_frames_of_the_same_clip():
    store = Store()
    store.images = torch.arange(len(store)).float()[:, None, None, None].expand(-1, 3, 80, 80) / len(store)
    batch = picture_batches(PictureSource([store]), 6, 3, PX, strength=0.0)(step_generator(0, 1))
    value = (batch.images.mean((1, 2, 3)) * len(store)).round()
    others = (batch.references.mean((2, 3, 4)) * len(store)).round()
    assert (others // 4 == (value // 4)[:, None]).all() and (others != value[:, None]).all()
    assert len(set(others[0].tolist())) == 3


def test_crops_that_are_too_small_and_unknown_networks_are_refused():
    with pytest.raises(FlashLipsError, match="80 px wide, too small for crop_px=512"):
        picture_batches(PictureSource([Store()]), 1, 1, 512)
    with pytest.raises(FlashLipsError, match="no clip of two frames"):
        picture_batches(PictureSource([Store(frames=1)]), 1, 1, PX)
    with pytest.raises(FlashLipsError, match="unet-250m or transformer-300m"):
        paper.build_editor("unet")
