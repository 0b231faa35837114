"""Fine-tuning for one person, end to end with real networks at toy sizes on a synthesised clip."""

from __future__ import annotations

import dataclasses
import json
import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from toy_dubs import make_track, toy_networks

from flashlips_core import checkpoint
from flashlips_core.cli import main
from flashlips_core.codec import CallableCodec, Codec
from flashlips_core.loading import LoadedPart, load_part
from flashlips_core.pipeline import LipSync
from flashlips_core.train.finetune import best_so_far
from flashlips_core.train.finetune import editor as finetune
from flashlips_core.train.finetune.best_so_far import trainable
from flashlips_core.train.finetune.editor import FineTuning, fine_tune
from flashlips_core.train.finetune.lora import add_lora, merged, with_shared_weights
from flashlips_core.train.finetune.person import BATCH, lip_boxes, prepare_person
from flashlips_core.train.finetune.report import CURVE, Check, Examiner, curve_picture, progress_picture
from flashlips_core.types import FlashLipsError

NUM_FRAMES = 60
QUICK = FineTuning(steps=4, batch=4, lr=1e-3, check_every=2, save_every_s=0)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Toy checkpoints for crops of 256 px, the size that the losses are laid out for."""
    folder = tmp_path_factory.mktemp("models")
    for role, network in toy_networks().items():
        checkpoint.save(network, folder / f"{role}.safetensors", role, {"licence": "test", "crop_px": 256})
    return folder


@pytest.fixture(scope="module")
def lipsync(models):
    return LipSync.load(models, device="cpu")


@pytest.fixture
def silent_clip(clip):
    """Two seconds and a half, without sound."""
    return clip(name="me.mp4", pts=tuple(range(0, NUM_FRAMES * 3600, 3600)))


@pytest.fixture
def person(lipsync, silent_clip):
    return prepare_person(lipsync, silent_clip, track=make_track(NUM_FRAMES), shortest_s=1)


@pytest.fixture
def tune(models, lipsync, person, tmp_path):
    """``tune(name, **settings)`` runs into a file of the test's folder."""

    def run(name="me", progress=None, watch=None, **changes):
        editor = load_part("editor", models / "editor.safetensors")
        settings = dataclasses.replace(QUICK, **changes)
        out = tmp_path / f"{name}.safetensors"
        return fine_tune(editor, person, lipsync.codec, lipsync.lip_encoder, out, settings, progress, watch)

    return run


def weights_of(path):
    return checkpoint.read_tensors(path)[0]


# ---- the material ----------------------------------------------------------------------------------------------------------


def test_the_end_of_the_clip_is_held_out(person):
    assert len(person.learnt.poses) == 51 - 12  # 85 % of 60 frames, and half a second between
    assert len(person.held_out.poses) == 9
    assert torch.equal(person.held_out.references, person.learnt.references), "a dub has references of the known clip"
    own = {bytes(latent.numpy()) for latent in person.learnt.latents}
    assert all(bytes(latent.numpy()) not in own for latent in person.held_out.latents)
    assert "2.4 s" in person.describe() and "39 frames" in person.describe()


def test_neighbours_are_other_frames_with_the_nearest_heads(person):
    neighbours = person.learnt.neighbours
    assert all(row not in others for row, others in enumerate(neighbours))
    assert neighbours.shape == (39, 10) and neighbours.max() < 39


def test_lip_boxes_lie_around_the_corners_of_the_mouth():
    points = np.array([[[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.4, 0.65], [0.6, 0.67]]])
    left, top, right, bottom = lip_boxes(points)[0]
    assert left < 0.4 and right > 0.6 and top < 0.65 and bottom > 0.67
    assert bottom - 0.66 > 0.66 - top, "an open mouth opens downwards"


def test_a_clip_that_shows_too_little_is_refused(lipsync, silent_clip):
    with pytest.raises(FlashLipsError, match=r"me.mp4 shows the face for 2.4 s, too short"):
        prepare_person(lipsync, silent_clip, track=make_track(NUM_FRAMES))
    with pytest.raises(FlashLipsError, match="shows the face for 1.2 s"):
        prepare_person(lipsync, silent_clip, track=make_track(NUM_FRAMES, absent=tuple(range(30))), shortest_s=0.1)


def test_a_clip_without_a_face_is_refused(lipsync, silent_clip):
    with pytest.raises(FlashLipsError, match="No face in any frame of me.mp4"):
        prepare_person(lipsync, silent_clip, track=make_track(NUM_FRAMES, absent=tuple(range(NUM_FRAMES))))


def test_a_track_of_another_clip_is_refused(lipsync, silent_clip):
    with pytest.raises(FlashLipsError, match="track this file again"):
        prepare_person(lipsync, silent_clip, track=make_track(40), shortest_s=1)


def test_crops_of_other_sizes_fit_their_editor_alone(models, lipsync, silent_clip, tmp_path):
    with pytest.raises(FlashLipsError, match="Crops of 500 px cannot be trained on"):
        prepare_person(LipSync.load(models, device="cpu", crop_px=500), silent_clip, track=make_track(NUM_FRAMES))
    larger = LipSync.load(models, device="cpu", crop_px=384)
    person = prepare_person(larger, silent_clip, track=make_track(NUM_FRAMES), shortest_s=1)
    assert person.learnt.latents.shape[-1] == 48
    out, editor = tmp_path / "me.safetensors", load_part("editor", models / "editor.safetensors")
    with pytest.raises(FlashLipsError, match="sees crops of 256 px, these frames have 384"):
        fine_tune(editor, person, lipsync.codec, lipsync.lip_encoder, out)
    editor = dataclasses.replace(editor, notes={"crop_px": 384})
    assert fine_tune(editor, person, lipsync.codec, lipsync.lip_encoder, out, QUICK).checks[-1].step == 4


# ---- LoRA ------------------------------------------------------------------------------------------------------------------


def test_lora_starts_as_the_network_and_merges_into_plain_weights():
    editor = toy_networks()["editor"].eval()
    references = editor.prepare_references(torch.randn(1, 2, 4, 32, 32), None)
    given = (torch.randn(1, 4, 32, 32), references, torch.randn(1, 12))
    with torch.no_grad():
        plain = editor(*given)
        keys, count = set(editor.state_dict()), sum(p.numel() for p in editor.parameters())
        tuned = add_lora(editor, 2)
        torch.testing.assert_close(tuned(*given), plain)
        trainable = [p for p in tuned.parameters() if p.requires_grad]
        assert 0 < sum(p.numel() for p in trainable) < count / 3
        for parameter in trainable:
            parameter.add_(0.05 * torch.randn_like(parameter))
        changed = tuned(*given)
        assert not torch.allclose(changed, plain)
        saved = merged(tuned)
        assert set(saved.state_dict()) == keys
        torch.testing.assert_close(saved(*given), changed, rtol=1e-4, atol=1e-5)


def test_lora_takes_the_weights_that_it_leaves_as_they_are():
    editor = toy_networks()["editor"].requires_grad_(False)
    own = {id(p) for p in editor.parameters()}
    tuned = add_lora(with_shared_weights(editor), 2)
    assert own == {id(p) for p in tuned.parameters() if not p.requires_grad}
    assert own == {id(p) for p in editor.parameters()}, "the network itself has no additions"


# ---- the run ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [0, 2])
def test_the_result_is_an_editor_that_says_what_it_was_trained_on(tune, models, lora):
    done = tune(lora=lora)
    assert done.ended == "steps" and [check.step for check in done.checks] == [0, 2, 4]
    part = load_part("editor", done.path)
    assert part.notes["trained_on"] == {"file": "me.mp4", "seconds": 2.4, "frames": 39}
    assert part.notes["licence"] == "test" and part.notes["base"] == "editor" and part.notes["crop_px"] == 256
    assert part.notes["steps"] == done.best.step and "agreed" in part.notes["consent"]
    assert done.best.psnr_db >= done.before.psnr_db
    assert set(weights_of(done.path)) == set(weights_of(models / "editor.safetensors"))


def test_the_file_holds_the_weights_of_the_best_check(tune, models, lipsync, person):
    done = tune(steps=9, check_every=3, lr=1e-3)
    assert done.best.step > 0 and done.best.psnr_db == max(check.psnr_db for check in done.checks)
    base, tuned = weights_of(models / "editor.safetensors"), weights_of(done.path)
    assert any(not torch.equal(base[name], tuned[name]) for name in base)
    examiner = Examiner(person, lipsync.codec, torch.device("cpu"))
    again = examiner.check(examiner.edits(load_part("editor", done.path).network), 0)
    assert again.psnr_db == pytest.approx(done.best.psnr_db, abs=2e-4)  # the file rounds to 16 bits


def test_the_sheet_shows_four_rows_of_mouths(tune):
    from PIL import Image

    with Image.open(tune(steps=2).sheet) as sheet:
        assert sheet.height > 4 * 100 and sheet.width > 6 * 100


@pytest.mark.parametrize("lora", [0, 2])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tune, tmp_path, lora):
    whole = tune("whole", steps=6, lora=lora)

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune("parts", progress=stop, steps=6, lora=lora)
    resumed = tune("parts", steps=6, lora=lora)
    assert [check.step for check in resumed.checks] == [check.step for check in whole.checks]
    for ours, theirs in zip(resumed.checks, whole.checks, strict=True):
        assert dataclasses.astuple(ours) == pytest.approx(dataclasses.astuple(theirs), rel=1e-6)
    first, second = weights_of(whole.path), weights_of(resumed.path)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=2e-3, atol=1e-5)
    state = [name for name in weights_of(tmp_path / "parts.run" / "state.safetensors") if name.startswith("network.")]
    assert all(name.endswith((".up", ".down")) for name in state) == bool(lora), "what does not learn is not saved"


def test_large_networks_learn_the_same_in_less_memory(tune, monkeypatch):
    plain = tune("plain", lora=2)
    windows = []

    def decode(self, latents, original=Codec.decode):
        windows.append((len(latents), torch.is_grad_enabled()))
        return original(self, latents)

    monkeypatch.setattr(Codec, "decode", decode)
    monkeypatch.setattr(finetune, "LARGE", 0)
    saving = tune("saving", lora=2)
    assert {count for count, _ in windows} == {1} and (1, True) in windows
    ours, theirs = weights_of(saving.path), weights_of(plain.path)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=2e-3, atol=1e-4)


def test_large_networks_learn_in_16_bits_on_a_gpu(lipsync, monkeypatch):
    def loop(device):
        return finetune.learning(lipsync.editor, lipsync.codec, lipsync.lip_encoder, QUICK, torch.device(device))[2]

    assert loop("cuda") == loop("cpu") == {"recompute": False, "precision": "fp32"}
    monkeypatch.setattr(finetune, "LARGE", 0)
    assert loop("cpu") == {"recompute": True, "precision": "fp32"} and loop("cuda")["precision"] == "bf16"


def test_a_stop_keeps_the_best_so_far(tune, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(finetune.Examiner, "check", lambda self, edits, step: Check(step, 20.0 - abs(step - 4), 1.0))

    def stop(done, total):
        if done == 9:
            raise KeyboardInterrupt

    seen = []
    with pytest.raises(KeyboardInterrupt):
        tune(steps=40, check_every=4, progress=stop, watch=lambda checks, edits: seen.append([check.step for check in checks]))
    assert seen[-1] == [0, 4, 8] and checkpoint.info(tmp_path / "me.safetensors").notes["steps"] == 4
    assert "holds the best so far, of step 4" in caplog.text


def test_it_ends_when_nothing_is_gained_any_more(tune, monkeypatch):
    monkeypatch.setattr(finetune.Examiner, "check", lambda self, edits, step: Check(step, 20.0 - step, 1.0))
    done = tune(steps=100, patience=2)
    assert done.ended == "no gain" and done.checks[-1].step == 4 and done.best.step == 0


def test_it_ends_after_its_minutes(tune):
    seconds = []
    done = tune(minutes=0.002, progress=lambda *count: seconds.append(count))
    assert done.ended == "minutes" and seconds


def test_what_learns_is_a_copy_on_the_device_and_in_32_bits():
    with torch.inference_mode():
        network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).half()
    made = trainable(network, "meta")
    tensors = made.state_dict()
    assert {value.device.type for value in tensors.values()} == {"meta"} and not made.training
    assert {value.dtype for value in tensors.values()} == {torch.float32, torch.int64}
    assert all(weight.requires_grad and not weight.is_inference() for weight in made.parameters())
    assert {value.device.type for value in network.state_dict().values()} == {"cpu"} and network.training


def test_it_works_where_tensors_are_made_in_inference_mode(models, person, tmp_path):
    with torch.inference_mode():
        fresh = LipSync.load(models, device="cpu")
        editor = LoadedPart(fresh.editor, "editor", "editor", {"crop_px": 256})
        done = fine_tune(editor, person, fresh.codec, fresh.lip_encoder, tmp_path / "me.safetensors", QUICK)
    assert done.checks[-1].step == 4


def test_the_networks_that_were_given_stay_as_they_are(models, lipsync, person, tmp_path):
    editor = load_part("editor", models / "editor.safetensors")
    before = {name: value.clone() for name, value in editor.network.state_dict().items()}
    fine_tune(editor, person, lipsync.codec, lipsync.lip_encoder, tmp_path / "me.safetensors", QUICK)
    assert all(torch.equal(before[name], value) for name, value in editor.network.state_dict().items())


def test_the_curve_rises_and_the_mouths_lie_below_it(tune):
    pictures = []
    done = tune(steps=2, watch=lambda checks, edits: pictures.append(progress_picture(checks, edits)))
    assert len(pictures) == 2 and pictures[0].shape[0] == 3 and pictures[0].shape[1] > 256 + 100
    curve = curve_picture([Check(0, 20.0, 1.0), Check(10, 25.0, 1.0)])
    rows, columns = (curve == CURVE).all(-1).nonzero()
    assert rows[columns.argmin()] > rows[columns.argmax()] + 100 and curve_picture(done.checks[:1]).shape == (256, 768, 3)


# ---- what can go wrong -----------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_weights(models, lipsync, person, tmp_path):
    poses = torch.full_like(person.learnt.poses, torch.nan)
    broken = dataclasses.replace(person, learnt=dataclasses.replace(person.learnt, poses=poses))
    editor = load_part("editor", models / "editor.safetensors")
    with pytest.raises(FlashLipsError, match="Training stopped at step 0.*nan"):
        fine_tune(editor, broken, lipsync.codec, lipsync.lip_encoder, tmp_path / "me.safetensors", QUICK)
    assert all(value.isfinite().all() for value in weights_of(tmp_path / "me.safetensors").values())


def test_another_runs_result_is_not_overwritten(tune, tmp_path):
    tune(steps=2)
    written = (tmp_path / "me.safetensors").read_bytes()
    with pytest.raises(FlashLipsError, match="comes from another clip, editor or setting"):
        tune(steps=2, seed=1)
    shutil.rmtree(tmp_path / "me.run")  # the help page allows it; beginning anew would put the base over the result
    with pytest.raises(FlashLipsError, match="or its run was deleted"):
        tune(steps=2)
    assert (tmp_path / "me.safetensors").read_bytes() == written


def test_a_full_disk_is_one_sentence(tune, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(best_so_far.checkpoint, "save", full)
    with pytest.raises(FlashLipsError, match="No space left on device"):
        tune()


def test_frames_say_which_codec_they_were_made_with(models, lipsync, person, silent_clip, tmp_path):
    editor, other = load_part("editor", models / "editor.safetensors"), dataclasses.replace(person, codec="taesdxl")
    with pytest.raises(FlashLipsError, match=f"latents of the codec 'taesdxl', this one is '{lipsync.codec.name}'"):
        fine_tune(editor, other, lipsync.codec, lipsync.lip_encoder, tmp_path / "me.safetensors")
    untrainable = LipSync(codec=CallableCodec(lambda x: x, lambda x: x, "other"), lip_encoder=lipsync.lip_encoder)
    with pytest.raises(FlashLipsError, match="through the VAE 'other'"):  # before any work
        prepare_person(untrainable, silent_clip, track=make_track(NUM_FRAMES), shortest_s=1)


def test_preparing_counts_and_shows_what_it_encodes(lipsync, silent_clip):
    counts, shown = [], []
    prepare_person(
        lipsync, silent_clip, track=make_track(NUM_FRAMES), shortest_s=1, progress=lambda *c: counts.append(c), show=shown.append
    )
    done, totals = zip(*counts, strict=True)
    assert list(done) == list(range(1, totals[0] + 1)) and set(totals) == {len(counts)} and len(shown) == -(-len(counts) // BATCH)


def test_a_stage_1_editor_and_a_missing_folder_are_refused(lipsync, person, tmp_path):
    masked = LoadedPart(nn.Linear(1, 1), "editor-masked", "stage 1")
    with pytest.raises(FlashLipsError, match="choose a refined one"):
        fine_tune(masked, person, lipsync.codec, lipsync.lip_encoder, tmp_path / "me.safetensors")
    wrapped = CallableCodec(lambda x: x, lambda x: x, "other")
    with pytest.raises(FlashLipsError, match="through the VAE 'other'"):
        fine_tune(masked, person, wrapped, lipsync.lip_encoder, tmp_path / "me.safetensors")
    with pytest.raises(FlashLipsError, match="there is no folder"):
        fine_tune(masked, person, lipsync.codec, lipsync.lip_encoder, tmp_path / "nowhere" / "me.safetensors")


# ---- the command -----------------------------------------------------------------------------------------------------------


def test_the_command_fine_tunes(models, silent_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(LipSync, "track", lambda self, *args, **kwargs: make_track(NUM_FRAMES, fps=Fraction(25)))
    monkeypatch.setattr("flashlips_core.train.finetune.person.SHORTEST_S", 1.0)
    out = tmp_path / "mine.safetensors"
    words = ["--video", str(silent_clip), "--out", str(out), "--models", str(models), "--steps", "2", "--lora", "2"]
    assert main(["train", "finetune", *words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["path"] == str(out) and result["steps"] == 2 and result["before"]["step"] == 0
    assert checkpoint.info(out).notes["fine_tuning"]["lora"] == 2


def test_the_command_lets_the_decoder_learn_first(models, silent_clip, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setattr(LipSync, "track", lambda self, *args, **kwargs: make_track(NUM_FRAMES, fps=Fraction(25)))
    monkeypatch.setattr("flashlips_core.train.finetune.person.SHORTEST_S", 1.0)
    out, face = tmp_path / "mine.safetensors", tmp_path / "face.safetensors"
    words = ["train", "finetune", "--video", str(silent_clip), "--out", str(out), "--models", str(models), "--steps", "2"]
    assert main([*words, "--decoder", str(out)]) == 2
    assert "name the same file" in capsys.readouterr().err and not out.exists()
    assert main([*words, "--decoder", str(face), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["decoder"]["path"] == str(face) and result["decoder"]["steps"] == 2
    assert checkpoint.info(face).role == "codec" and checkpoint.info(out).role == "editor"
    assert load_part("editor", out).codec == load_part("editor", models / "editor.safetensors").codec
    again = [*words, "--decoder", str(face)]
    assert main(again) == 0
    assert "The decoder, on held-out frames: lips" in capsys.readouterr().out
    part = load_part("editor", out)
    assert part.codec_source == face and LipSync(editor=out).codec.path == face == LipSync(editor=part).codec.path
    face.rename(tmp_path / "elsewhere.safetensors")
    assert part.codec_source == part.codec and LipSync(editor=out).codec.name == "bundled"
    assert "mine.safetensors learnt through face.safetensors, which is not beside it" in caplog.text


def test_the_command_refuses_in_one_sentence(models, plain_clip, tmp_path, capsys):
    out = str(tmp_path / "mine.safetensors")
    words = ["--video", str(plain_clip), "--out", out, "--editor", str(models / "lip-encoder.safetensors")]
    assert main(["train", "finetune", *words]) == 2
    assert "is a checkpoint for 'lip-encoder', but 'editor' is needed" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["train", "finetune", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--minutes" in shown and "--weights" not in shown
