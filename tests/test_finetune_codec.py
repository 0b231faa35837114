"""A codec's decoder learns one person: a real codec at toy size, frames that are made up."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import encoded_frames, tiny_codec
from toy_dubs import make_track

from flashlips_core import checkpoint
from flashlips_core.codec import CallableCodec, load_codec
from flashlips_core.pixels import to_bytes
from flashlips_core.train.batches.frames import window_cells
from flashlips_core.train.finetune.codec import CodecTuning, decoder_batches, tune_decoder
from flashlips_core.train.finetune.person import PersonFrames
from flashlips_core.types import FlashLipsError

QUICK = CodecTuning(steps=4, batch=4, lr=1e-3, check_every=2, save_every_s=0)


@pytest.fixture
def person() -> PersonFrames:
    """A face as the codec draws it, but darker."""
    frames = encoded_frames()
    drawn = tiny_codec().decode(window_cells(frames.latents.float()))
    frames = dataclasses.replace(frames, windows=torch.from_numpy(to_bytes(drawn - 0.4)))
    return PersonFrames(frames, frames, "me.mp4", 2.4, 256, "tiny", make_track(24))


@pytest.fixture
def tune(person, tmp_path):
    """``tune(name, **settings)`` runs into a file of the test's folder."""

    def run(name="face", progress=None, codec=None, person=person, **changes):
        settings = dataclasses.replace(QUICK, **changes)
        return tune_decoder(codec or tiny_codec(), person, tmp_path / f"{name}.safetensors", settings, progress)

    return run


def test_it_learns_the_face_and_keeps_the_encoder(person, tmp_path):
    given, path = tiny_codec(), tmp_path / "face.safetensors"
    given.notes = {"licence": "of the base"}
    done = tune_decoder(given, person, path, dataclasses.replace(QUICK, steps=60, lr=1e-2, check_every=20))
    assert [check.step for check in done.checks] == [0, 20, 40, 60]
    assert done.best.psnr_db > done.before.psnr_db + 1
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


def test_batches_are_frames_with_their_own_latents(person):
    batch = decoder_batches(person.learnt, 5)(torch.Generator().manual_seed(0))
    assert batch.pixels.shape == (5, 3, *(8 * side for side in batch.cells.shape[2:]))
    rows = torch.randint(24, (5,), generator=torch.Generator().manual_seed(0))
    windows = person.learnt.windows[rows].permute(0, 3, 1, 2)
    assert torch.allclose(batch.pixels * 127.5 + 127.5, windows.float(), atol=0.51)


def test_what_cannot_learn_is_refused(tune, person, tmp_path):
    codec = tiny_codec()
    with pytest.raises(FlashLipsError, match="'somebody's' cannot learn a person; choose a bundled one"):
        tune(codec=CallableCodec(codec.encode, codec.decode, "somebody's"))
    with pytest.raises(FlashLipsError, match="latents of the codec 'another', this one is 'tiny'"):
        tune(person=dataclasses.replace(person, codec="another"))
    assert not list(tmp_path.iterdir())


def test_another_clip_does_not_go_on_in_the_same_file(tune, person):
    tune()
    other = dataclasses.replace(person, learnt=dataclasses.replace(person.learnt, latents=person.learnt.latents + 1))
    with pytest.raises(FlashLipsError, match="comes from another clip, codec or setting"):
        tune(person=other)
