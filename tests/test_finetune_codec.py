"""A codec's decoder learns one person: a real codec at toy size, frames that are made up."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_pipeline import make_track, toy_networks
from tiny import encoded_frames, tiny_codec
from torch import nn

from flashlips_core import checkpoint
from flashlips_core.codec import CallableCodec, load_codec
from flashlips_core.loading import STAGE_1, LoadedPart
from flashlips_core.models.masks import mouth_mask
from flashlips_core.pixels import to_bytes
from flashlips_core.train.editor import pair_target, without_edge
from flashlips_core.train.editor_data import window_cells
from flashlips_core.train.finetune_codec import (
    WEIGHTS,
    CodecCheck,
    CodecTuning,
    decoder_batches,
    decoder_step,
    tune_decoder,
    window_losses,
)
from flashlips_core.train.finetune_data import PersonFrames
from flashlips_core.types import FlashLipsError

QUICK = CodecTuning(steps=4, batch=4, lr=1e-3, check_every=2, save_every_s=0)


@pytest.fixture
def person() -> PersonFrames:
    """A face as the codec draws it, but darker."""
    frames = encoded_frames()
    drawn = tiny_codec().decode(window_cells(frames.latents.float()))
    alone = {"group_of": np.zeros(24, int), "rows_of_group": [np.arange(24)], "groups_of_speaker": {"person": [0]}}
    seen = {"references": frames.references[:1], "reference_poses": frames.reference_poses[:1]}
    frames = dataclasses.replace(frames, windows=torch.from_numpy(to_bytes(drawn - 0.4)), **alone, **seen)
    return PersonFrames(frames, frames, "me.mp4", 2.4, 256, "tiny", make_track(24))


@pytest.fixture
def editor() -> LoadedPart:
    return LoadedPart(toy_networks()["editor"].eval(), "editor", "toy")


@pytest.fixture
def tune(person, editor, tmp_path):
    """``tune(name, **settings)`` runs into a file of the test's folder."""

    def run(name="face", progress=None, codec=None, person=person, **changes):
        settings = dataclasses.replace(QUICK, **changes)
        return tune_decoder(codec or tiny_codec(), person, editor, tmp_path / f"{name}.safetensors", settings, progress)

    return run


def test_it_learns_the_face_and_keeps_the_encoder(person, editor, tmp_path):
    given, path = tiny_codec(), tmp_path / "face.safetensors"
    given.notes = {"licence": "of the base"}
    done = tune_decoder(given, person, editor, path, dataclasses.replace(QUICK, steps=60, lr=1e-2, check_every=20))
    assert [check.step for check in done.checks] == [0, 20, 40, 60]
    assert done.best.score > done.before.score + 0.5
    assert all(torch.equal(value, tiny_codec().network.state_dict()[name]) for name, value in given.network.state_dict().items())
    written = load_codec(path)
    for name, value in given.network.state_dict().items():
        is_near = torch.allclose(written.network.state_dict()[name], value, atol=1e-3)  # fp16 in the file
        assert is_near or name.startswith("decoder"), name
    latents = torch.randn(1, 4, 8, 8)
    assert not torch.allclose(written.decode(latents), given.decode(latents), atol=0.05)
    notes = checkpoint.info(path).notes
    assert notes["trained_on"]["file"] == "me.mp4" and notes["base"] == "tiny" and "agreed" in notes["consent"]
    assert notes["licence"] == "of the base" and written.is_fine_tuned and written.latents == "tiny"


def test_a_stopped_run_goes_on_and_ends_as_one_that_was_not(tune, tmp_path):
    class Stop(Exception):
        pass

    def stop_at_three(done, total):
        if done == 3:
            raise Stop

    whole = tune("whole")
    with pytest.raises(Stop):
        tune("parts", stop_at_three)
    assert tune("parts").checks == whole.checks
    first, second = (checkpoint.read_tensors(tmp_path / f"{name}.safetensors")[0] for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_gains_nothing_leaves_the_base(tune, tmp_path):
    done = tune(lr=1.0, steps=40, check_every=1, patience=2)  # far too fast
    assert done.ended == "no gain" and done.best.step == 0 and done.checks[-1].psnr_db < done.before.psnr_db
    written = checkpoint.read_tensors(tmp_path / "face.safetensors")[0]
    assert all(torch.allclose(written[n].float(), v, atol=1e-3) for n, v in tiny_codec().network.state_dict().items())


def test_some_batches_are_edited_and_each_part_is_compared_with_what_it_should_be(person, editor):
    nn.init.zeros_(editor.network.conv_out.weight)
    nn.init.zeros_(editor.network.conv_out.bias)  # an edit is then the neighbour itself
    codec, make, step = tiny_codec(), decoder_batches(person.learnt, 5), decoder_step(editor.network)
    batches = [make(torch.Generator().manual_seed(seed)) for seed in range(40)]
    assert 10 < sum(batch.is_edited for batch in batches) < 30
    for batch in (next(b for b in batches if b.is_edited is is_edited) for is_edited in (False, True)):
        pairs, losses = batch.pairs, step(codec.network, batch, torch.Generator())
        assert losses.keys() == WEIGHTS.keys()
        drawn, near = (without_edge(codec.decode(window_cells(latents))) for latents in (pairs.z_src, pairs.z_near))
        assert torch.allclose(losses["pixel"], (drawn - without_edge(pairs.pixels)).abs().mean(), atol=1e-5)
        _, wanted = pair_target(pairs, mouth_mask(32, 32))
        apart = (near - without_edge(wanted)).abs().mean()
        assert torch.allclose(losses["edit_pixel"], apart if batch.is_edited else torch.zeros(()), atol=1e-5)


def test_an_edit_is_held_to_the_amount_of_detail_and_hardly_to_where_it_lies():
    grain = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) / 4
    weighed = [
        sum(WEIGHTS[f"edit_{name}"] * float(loss) for name, loss in window_losses(drawn, grain).items())
        for drawn in (grain.roll(5, 3), torch.zeros_like(grain))
    ]
    assert 0 < weighed[0] < 0.5 * weighed[1]


def test_a_check_prefers_edits_as_sharp_as_frames():
    assert CodecCheck(0, 38.0, 1.0).score > CodecCheck(1, 38.1, 0.9).score > CodecCheck(2, 38.1, 1.2).score
    assert CodecCheck(0, 38.5, 0.9).score > CodecCheck(1, 38.0, 1.0).score


def test_what_cannot_learn_is_refused(tune, person, editor, tmp_path):
    codec = tiny_codec()
    with pytest.raises(FlashLipsError, match="'somebody's' cannot learn a person; choose a bundled one"):
        tune(codec=CallableCodec(codec.encode, codec.decode, "somebody's"))
    with pytest.raises(FlashLipsError, match="latents of the codec 'another', this one is 'tiny'"):
        tune(person=dataclasses.replace(person, codec="another"))
    for unfit, what in ((dataclasses.replace(editor, role=STAGE_1), "masked frames only"), (
        dataclasses.replace(editor, notes={"crop_px": 384}), "sees crops of 384 px, these frames have 256")):  # fmt: skip
        with pytest.raises(FlashLipsError, match=what):
            tune_decoder(codec, person, unfit, tmp_path / "face.safetensors")
    assert not list(tmp_path.iterdir())


def test_another_clip_does_not_go_on_in_the_same_file(tune, person):
    tune()
    other = dataclasses.replace(person, learnt=dataclasses.replace(person.learnt, latents=person.learnt.latents + 1))
    with pytest.raises(FlashLipsError, match="comes from another clip, codec or setting"):
        tune(person=other)
