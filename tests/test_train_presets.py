"""Presets: the numbers of a run, the paper's among them, and the stages that take them."""

from __future__ import annotations

import dataclasses
import typing

import numpy as np
import pytest
import torch
from tiny import TINY_CODEC, TINY_EDITOR, put_tiny_judges_in

from flashlips_core import checkpoint
from flashlips_core.dataset.store import CropStore
from flashlips_core.loading import STAGE_1, load_network
from flashlips_core.models.codec_mini import MiniCodec
from flashlips_core.models.editor_unet import EditorUNet
from flashlips_core.models.lip_encoder import LipEncoder, LipEncoderConfig
from flashlips_core.train import lip, looks, run
from flashlips_core.train.batches import material
from flashlips_core.train.batches.frames import window_of
from flashlips_core.train.editor import pairs, paper
from flashlips_core.train.loop.settings import changed, options_of, values_of
from flashlips_core.train.loop.trainer import TrainConfig, Trainer
from flashlips_core.train.presets import PRESETS, STAGES, Stage, run_stage, stage_of, stages_of
from flashlips_core.types import FlashLipsError

ALL = [(name, preset) for name in STAGES for preset in stages_of(name)]


def full(name: str) -> dict:
    return values_of(stage_of(name, "full", {}).settings)


def test_the_full_preset_has_the_papers_numbers():
    editor_run, refinement, pose = full("editor"), full("refinement"), full("poses")
    assert (editor_run["steps"], editor_run["lr"], editor_run["schedule"]) == (1_000_000, 1e-4, "onecycle")
    assert editor_run["batch_size"] * 8 == 32 and refinement["steps"] == full("lip-encoder")["steps"] == 200_000
    assert (pose["lr"], pose["schedule"]) == (5e-5, "constant")
    assert all(full(name)["precision"] == "bf16" for name in ("editor", "editor-joint", "refinement", "poses", "lip-encoder"))
    trainer = Trainer(torch.nn.Linear(1, 1), dataclasses.replace(paper.FULL_EDITOR, run_dir="x", recompute=False))
    trainer.step = 40_000
    assert trainer.learning_rate() == pytest.approx(1e-4)
    trainer.step = 1_000_000
    assert trainer.learning_rate() == pytest.approx(1e-8)
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in build().parameters()) / 1e6 for name, build in paper.NETWORKS.items()}
    assert sizes["unet-250m"] == pytest.approx(250, rel=0.03) and sizes["transformer-300m"] == pytest.approx(300, rel=0.05)


@pytest.mark.parametrize(("name", "preset"), ALL)
def test_a_stage_takes_the_settings_that_stand_beside_it_and_every_number_has_a_text(name, preset):
    stage = stage_of(name, preset, {})
    asked = typing.get_type_hints(stage.run)["run"]
    assert typing.get_args(asked) == (type(stage.settings),)
    own = {field.name for field in dataclasses.fields(stage.settings)} - {"run_dir", "weights"}
    assert set(options_of(type(stage.settings))) == own and all(options_of(type(stage.settings)).values())
    assert changed(stage.settings, values_of(stage.settings), "x") == stage.settings  # each value is of its own kind


def test_every_stage_is_in_a_preset_and_says_why_it_is_not_in_the_other():
    for name, presets in STAGES.items():
        assert tuple(presets) == PRESETS and any(isinstance(stage, Stage) for stage in presets.values())
        for preset in set(PRESETS) - set(stages_of(name)):
            with pytest.raises(FlashLipsError, match=f"preset '{preset}' has no stage '{name}': {presets[preset]}"):
                stage_of(name, preset, {})


@pytest.mark.parametrize(
    ("stage", "preset", "changes", "words"),
    [
        ("editor", "mini", {"stepz": 1}, "has no setting 'stepz'; did you mean steps"),
        ("looks", "mini", {"lr": 1e-3}, "has no setting 'lr'; it has crop_px, device, only, rounds, strength"),
        ("heads", "mini", {"lr": 1e-3}, "has no setting 'lr'; it has none"),
        ("editor", "mini", {"steps": "many"}, "The setting 'steps' is 'many'; give it a value like 12000"),
        ("editor", "mini", {"betas": (0.9,)}, "The setting 'betas' is"),
        ("editor", "mini", {"start": 3}, "The setting 'start' is 3; give it a value like None"),
        ("editor", "full", {"recompute": 1}, "give it a value like True"),
        ("editor", "mini", {"run_dir": "x"}, "has no setting 'run_dir'"),
        ("editor", "mini", {"precision": "fp8"}, "The precision is 'fp8'; choose one of fp32, bf16"),
        ("editor", "huge", {}, "No preset is called 'huge'"),
        ("dance", "mini", {}, "Unknown stage 'dance'; choose one of prepare, codec"),
    ],
)
def test_settings_that_do_not_exist_or_fit_are_one_sentence(stage, preset, changes, words):
    with pytest.raises(FlashLipsError, match=words):
        stage_of(stage, preset, changes)


def test_settings_replace_the_presets():
    own = stage_of("editor", "full", {"lr": 1, "start": "a.safetensors", "betas": (0.9, 0.95)}).settings
    assert own.lr == 1 and own.start == "a.safetensors" and own.steps == 1_000_000
    assert full("editor")["lr"] == 1e-4


@pytest.mark.parametrize("cards", [0, 2])
@pytest.mark.parametrize(("name", "preset"), ALL)
def test_a_stage_computes_on_the_named_device_else_on_its_processes_own_card(name, preset, cards, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cards > 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    settings = stage_of(name, preset, {}).settings
    one = run.Run(tmp_path, tmp_path, tmp_path, settings)
    assert one.device == ("cuda:1" if cards else "cpu")
    if isinstance(settings, TrainConfig):
        there = run.Run(tmp_path, tmp_path, tmp_path, dataclasses.replace(settings, device="cuda:7"))
        assert one.config("x").device == one.device and there.device == there.config("x").device == "cuda:7"
        assert one.config("x").run_dir == str(tmp_path / "x")


def test_the_judges_of_an_editor_are_where_it_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    asked = []
    for name in ("load_codec", "load_network", "load_vgg"):
        monkeypatch.setattr(pairs, name, lambda *given: asked.append([x for x in given if x == "cuda:3"]))
    monkeypatch.setattr(pairs, "PerceptualLoss", lambda vgg: vgg)
    pairs.judge_of(run.Run(tmp_path, tmp_path, tmp_path, pairs.EditorSettings(vgg_stages=2)))
    assert asked == [["cuda:3"]] * 3


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A run folder with stored crops and a lip encoder, and toy judges."""
    folder, random = tmp_path / "run", np.random.default_rng(0)
    for name in ("crops_people", "crops_s1"):
        (folder / name).mkdir(parents=True)
        np.save(folder / name / "crops.npy", random.integers(0, 255, (6, 80, 80, 3), dtype=np.uint8))
        angle = np.linspace(0, 2 * np.pi, 40)
        lips = np.stack([0.5 + 0.1 * np.cos(angle), 0.7 + 0.1 * np.sin(angle)], -1).astype(np.float32)
        np.savez(
            folder / name / "table.npz", clip_of=np.repeat([0, 1], 3), frame_of=np.tile(np.arange(3), 2),
            landmarks=np.tile(lips, (6, 1, 1)), clip_ids=[f"{name}/a", f"{name}/b"], speakers=["a", "b"],
        )  # fmt: skip
    torch.manual_seed(0)
    reader = LipEncoder(LipEncoderConfig(channels=(8, 8), blocks=(1, 1), mouth_px=32))
    checkpoint.save(reader, folder / "lip-encoder.safetensors", "lip-encoder", {})
    put_tiny_judges_in(monkeypatch)
    return folder


def test_the_full_stages_run_from_one_to_the_next_and_name_their_judges(place, caplog):
    small = {"steps": 1, "batch_size": 2, "references": 1, "crop_px": 64, "precision": "fp32", "tensorboard": False}
    path = run_stage("editor", "d", "w", place, small | {"network": "tiny"}, preset="full")
    assert "flat stands in for the paper's VGGFace2" in caplog.text
    info = checkpoint.info(path)
    assert info.role == STAGE_1 and info.notes["crop_px"] == 64 and info.notes["preset"] == "full"
    assert info.notes["judged_by"] == {"codec": "tiny", "perceptual": "VGG19", "identity": "flat (stand-in)"}
    edited = run_stage("refinement", "d", "w", place, small, preset="full")
    assert isinstance(load_network("editor", edited), EditorUNet)
    again = run_stage("editor", "d", "w", place, small | {"steps": 2, "network": "tiny"}, preset="full")
    assert again == path and (place / "run_editor" / "sheets" / "0000002.png").is_file()


def test_refinement_before_the_editor_and_an_editor_without_crops_are_one_sentence(place, tmp_path):
    with pytest.raises(FlashLipsError, match="run the stage 'editor' first"):
        run_stage("refinement", "d", "w", place, {"crop_px": 64}, preset="full")
    (place / "crops_s1" / "table.npz").unlink()
    with pytest.raises(FlashLipsError, match="run the stage 'prepare' first"):
        run_stage("editor", "d", "w", place, {"network": "tiny"}, preset="full")


def test_the_joint_stage_writes_the_editor_and_the_teacher_with_its_labels(place, monkeypatch):
    random = np.random.default_rng(1)
    ids = [str(i) for name in ("crops_people", "crops_s1") for i in CropStore(place / name).clip_ids]
    features = {i: (random.normal(size=(3, 107)).astype(np.float32), np.ones(3, np.float32)) for i in ids}
    written = {}
    rows = {"rows_of_clip": [np.arange(140)], "clips_of_speaker": {"a": [0]}, "opening": np.ones(140), "store": None}
    samples = lip.LipSamples(features=random.normal(size=(140, 107)).astype(np.float32), **rows)
    monkeypatch.setattr(lip, "mouth_samples", lambda run: (samples, []))
    monkeypatch.setattr(lip, "speaker_features", lambda clips: features)
    monkeypatch.setattr(lip, "label_rows", lambda teacher, *rest: written.update(teacher=teacher) or "poses")
    monkeypatch.setattr(lip, "save_labels", lambda run, poses, *rest: written.update(poses=poses))
    small = {"steps": 2, "batch_size": 2, "references": 1, "crop_px": 64, "precision": "fp32", "tensorboard": False}
    path = run_stage("editor-joint", "d", "w", place, small | {"network": "tiny"}, preset="full")
    assert checkpoint.info(path).role == STAGE_1 and (place / "lip-teacher.safetensors").is_file()
    start = lip.start_teacher(samples.features)
    assert not torch.equal(start.linear.weight, written["teacher"].linear.weight) and written["poses"] == "poses"


def test_the_looks_are_as_strong_and_as_large_as_was_asked(tmp_path, monkeypatch):
    (tmp_path / "crops_s1").mkdir()
    (tmp_path / "crops_s1" / "table.npz").touch()
    made = []
    for name, value in {
        "load_codec": lambda path, device: "codec", "load_network": lambda role, folder, device: "reader",
        "encode_looks": lambda *given, **how: made.append((given[4], how)),
    }.items():  # fmt: skip
        monkeypatch.setattr(looks, name, value)
    monkeypatch.setattr(material, "CropStore", lambda folder: "store")
    run_stage("looks", tmp_path, tmp_path, tmp_path, {"crop_px": 384, "strength": 0.5, "rounds": 4})
    assert [(count, how["crop_px"], how["strength"], how["device"]) for count, how in made] == [(4, 384, 0.5, "cpu")]


def test_the_detail_stage_starts_from_the_plain_codec_each_time(tmp_path):
    torch.manual_seed(0)
    checkpoint.save(MiniCodec(TINY_CODEC), tmp_path / "codec.safetensors", "codec", {})
    checkpoint.save(EditorUNet(TINY_EDITOR), tmp_path / "editor.safetensors", "editor", {})
    save_looks(tmp_path / "looks_toy")
    made = []
    for _ in range(2):
        run_stage("detail", tmp_path, tmp_path, tmp_path, {"steps": 2, "batch_size": 4})
        made.append(checkpoint.read_tensors(tmp_path / "codec.safetensors")[0])
    plain, _ = checkpoint.read_tensors(tmp_path / "codec-plain.safetensors")
    assert all(torch.equal(made[0][name], made[1][name]) for name in plain)
    assert any(not torch.equal(made[0][name], plain[name]) for name in plain)


def save_looks(folder):
    """Noise for frames: one clip of eight, as the stage "looks" saves it."""
    folder.mkdir()
    _, _, rows, columns = window_of(32)
    rng = np.random.default_rng(0)
    np.save(folder / "windows.npy", rng.integers(0, 255, (8, 8 * rows, 8 * columns, 3), dtype=np.uint8))
    np.savez(
        folder / "frames.npz", speakers=["a"], group=np.zeros(8, int), latents=rng.normal(size=(8, 4, 32, 32)).astype(np.float16),
        poses=rng.normal(size=(8, 12)).astype(np.float32), lips=np.tile(np.float32([0.4, 0.55, 0.6, 0.7]), (8, 1)),
        neighbours=np.stack([np.delete(np.arange(8), i)[:6] for i in range(8)]),
        references=rng.normal(size=(1, 6, 4, 32, 32)).astype(np.float16),
        reference_poses=rng.normal(size=(1, 6, 12)).astype(np.float32),
    )  # fmt: skip
