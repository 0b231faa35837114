"""Every stage on a training set that ``data build`` made: from videos of four people to networks that the product loads."""

from __future__ import annotations

import csv
import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY_CODEC, put_tiny_judges_in
from toy_sets import DEMO, QUICK, DemoFace, at, write_clip

from flashlips_core import checkpoint
from flashlips_core.cli import main
from flashlips_core.codec import load_codec
from flashlips_core.dataset import videos as measuring
from flashlips_core.dataset.build import build
from flashlips_core.dataset.filters import Limits
from flashlips_core.dataset.read import ShardCrops, ShardReader
from flashlips_core.dataset.store import STORED_MARGIN, CropStore
from flashlips_core.face.expression import BLENDSHAPES
from flashlips_core.face.motion import INNER_PAIRS, OUTER_LIPS, FaceMotion
from flashlips_core.face.points import LANDMARKS
from flashlips_core.loading import STAGE_1, load_network
from flashlips_core.media import load_audio, read_frames
from flashlips_core.models.codec_mini import MiniCodec
from flashlips_core.models.editor_unet import EditorUNet
from flashlips_core.models.lip_encoder import LipEncoderConfig
from flashlips_core.pipeline import LipSync
from flashlips_core.train import ablation, lip, looks
from flashlips_core.train.batches import labels, tracks
from flashlips_core.train.batches.material import SET_FACES, STORED_MOUTH, STORED_PX, cut_mouths, open_material
from flashlips_core.train.batches.tracks import OTHERS_SHARE, SILENT_SHARE, PoseLabels, PoseTracks
from flashlips_core.train.lip import LipTeacherSettings
from flashlips_core.train.run import Run
from flashlips_core.types import FlashLipsError

PX, FRAMES, HIDDEN_EVERY = 128, 40, 7
# Names that mean something in GRID: a speaker out of sync there, and the beginning of a rendered head's
SPLITS = {"s4": "train", "headley": "train", "val": "val", "tess": "test"}
SETTINGS = replace(QUICK, crop_px=PX, limits=Limits(min_seconds=1.0, min_sync=-1.0, max_lag=12, keep_silent=True))


@contextmanager
def fake_landmarker(model):
    """A face whose mouth opens and shuts from look to look; none in every seventh picture, nor in any red one."""
    layout, looks = np.random.default_rng(0).uniform(0.25, 0.75, (478, 2)).astype(np.float32), []
    layout[[468, 473]] = (0.35, 0.42), (0.65, 0.42)
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False) + np.pi

    def find(image):
        looks.append(1)
        if len(looks) % HIDDEN_EVERY == 0 or image[..., 0].mean() > 2 * image[..., 2].mean():
            return None
        points, opening = layout.copy(), 0.05 + 0.04 * np.sin(1.3 * len(looks))
        points[list(OUTER_LIPS)] = np.stack([0.5 + 0.12 * np.cos(angle), 0.7 - (0.03 + opening / 2) * np.sin(angle)], -1)
        for x, (top, bottom) in zip((0.46, 0.5, 0.54), INNER_PAIRS, strict=True):
            points[[top, bottom]] = (x, 0.7 - opening / 2), (x, 0.7 + opening / 2)
        shapes = np.random.default_rng(len(looks)).uniform(0, 0.3, 52).astype(np.float32)
        shapes[BLENDSHAPES.index("jawOpen")] = 10 * opening
        return (points + (STORED_MARGIN - 1) / 2) / STORED_MARGIN * len(image), shapes

    yield find


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Two clips of everybody; of headley also one without sound, and one in which MediaPipe finds no face."""
    folder, sound = tmp_path_factory.mktemp("videos"), load_audio(DEMO)
    frames = [replace(f, planes=tuple(p[::2, ::2] for p in f.planes)) for f in read_frames(DEMO, stop=2 * FRAMES)]
    for person in SPLITS:
        for take in range(2):
            part = frames[take * FRAMES : (take + 1) * FRAMES]
            write_clip(folder / person / f"{take}.mp4", part, at(sound, take * FRAMES / 25, FRAMES / 25))
    write_clip(folder / "headley" / "mute.mp4", frames[:FRAMES], None)
    red = [replace(f, planes=(*f.planes[:2], np.full_like(f.planes[2], 240))) for f in frames[:FRAMES]]
    write_clip(folder / "headley" / "red.mp4", red, at(sound, 0, FRAMES / 25))
    with (folder / "who.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "identity", "split"])
        rows.writerows([p.relative_to(folder), p.parent.name, SPLITS[p.parent.name]] for p in folder.rglob("*.mp4"))
    return folder


@pytest.fixture(scope="module")
def lipsync() -> LipSync:
    return LipSync.load(device="cpu", detector=DemoFace())


@pytest.fixture(scope="module")
def built(videos, lipsync, tmp_path_factory) -> Path:
    """A set with landmarks."""
    out = tmp_path_factory.mktemp("data") / "mine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "open_landmarker", fake_landmarker)
        build([videos], out, lipsync, replace(SETTINGS, identity=str(videos / "who.csv"), landmarker="fake.task"))
    return out


@pytest.fixture(scope="module")
def bare(videos, lipsync, tmp_path_factory) -> Path:
    """A set without landmarks."""
    out = tmp_path_factory.mktemp("data") / "bare"
    build([videos / "s4" / "0.mp4"], out, lipsync, SETTINGS)
    return out


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> Path:
    """A tiny codec in TAESDXL's place."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "codec.safetensors"
    checkpoint.save(MiniCodec(TINY_CODEC), path, "codec", {})
    return path


STAGES = {
    "prepare": [],
    "codec": ["steps=1", "batch_size=1", "cached=4"],
    "lip-teacher": ["steps=2", "batch_size=4"],
    "lip-encoder": ["steps=2", "batch_size=4"],
    "looks": ["crop_px=256"],  # the small editor needs it
    "editor": ["steps=1", "batch_size=4"],
    "refinement": ["steps=1", "batch_size=4"],
    "distil": ["steps=1", "batch_size=8"],
    "detail": ["steps=1", "batch_size=4"],
    "poses": ["steps=2", "batch=4", "num_frames=20", "variants=1", "validate_every=2"],
}


def train(stage: str, data: Path, weights: Path, folder: Path, *settings: str) -> int:
    """The command."""
    return main(["train", stage, "--data", str(data), "--weights", str(weights), "--folder", str(folder), "--quiet", *settings])


@pytest.fixture(scope="module")
def trained(built, teachers, tmp_path_factory) -> Path:
    """The run folder after all stages of the bundled model."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracks, "SILENT_TRACKS", 4)
        patch.setitem(looks.LOOKS, SET_FACES, (2, 6))
        for stage, settings in STAGES.items():
            assert train(stage, built, teachers, folder, *settings) == 0, stage
            if stage == "codec":
                assert load_codec(str(folder / "codec.safetensors")).network.config != TINY_CODEC
                (folder / "codec.safetensors").write_bytes(teachers.read_bytes())  # quicker for what follows
    return folder


def run_of(built: Path, folder: Path) -> Run[LipTeacherSettings]:
    return Run(built, Path("weights"), folder, LipTeacherSettings())


# ---- the whole way ---------------------------------------------------------------------------------------------------------


def test_all_stages_leave_networks_that_the_product_loads_and_that_say_what_they_learnt_from(trained):
    names = {"lip-encoder": "lip-encoder", "editor": "editor", "pose-model": "pose-model"}
    for role, name in names.items():
        assert load_network(role, trained / f"{name}.safetensors") is not None
    stage_1 = load_network("editor", trained / f"{STAGE_1}.safetensors").state_dict()
    refined = load_network("editor", trained / "editor.safetensors").state_dict()
    assert any(not torch.equal(stage_1[name], refined[name]) for name in stage_1)
    assert load_codec(str(trained / "codec.safetensors")).network.config == TINY_CODEC
    for name in ("lip-teacher", "lip-encoder", "editor", "codec"):
        assert checkpoint.info(trained / f"{name}.safetensors").notes["licence"] == (
            "as the videos it was trained on allow; trained on the training set 'mine'"
        )
    notes = checkpoint.info(trained / "pose-model.safetensors").notes
    assert notes["data"] == "the training set 'mine', 4 clips of 2 people, and silence" and "GRID" not in json.dumps(notes)


def test_videos_are_labelled_into_a_folder_that_is_made(tmp_path, monkeypatch):
    count = 3
    motion = FaceMotion(
        *(np.zeros(count) for _ in range(3)), np.zeros((count, 4)), np.zeros((count, 52)), np.zeros((count, 478, 2))
    )
    monkeypatch.setattr(labels, "measure_video", lambda path, model: motion)
    (tmp_path / "videos" / "train").mkdir(parents=True)
    (tmp_path / "videos" / "train" / "a.mp4").touch()
    out = tmp_path / "new" / "run" / "labels.npz"
    labels.label_videos(tmp_path / "videos", "model", out)
    with np.load(out) as file:
        assert file["ids"].tolist() == ["train/a"] and file["num_frames"].tolist() == [count] and file["found"].all()


def test_everybody_is_labelled_and_nobody_but_the_training_split_is_learnt_from(trained, built):
    wanted = {"set/s4", "set/headley"}
    run = run_of(built, trained)
    labels, (samples, clips) = PoseLabels.load(trained / "poses_grid.npz"), lip.mouth_samples(run)
    assert set(labels.speakers) == {c.speaker for c in clips} == {f"set/{name}" for name in SPLITS}
    assert dict(zip(labels.speakers, labels.splits, strict=True)) == {f"set/{name}": split for name, split in SPLITS.items()}
    assert {s for store in run.face_stores() for s in store.speakers} == wanted
    assert set(samples.clips_of_speaker) == wanted
    rows = lip.draw_rows(samples, 200, torch.Generator().manual_seed(0))
    assert {samples.store.speakers[samples.store.clip_of[row]] for row in rows.ravel()} == wanted
    assert set(np.load(trained / f"looks_{SET_FACES}" / "frames.npz")["speakers"]) == wanted
    heard = np.load(trained / "run_poses" / "sounds.npz")["clip"]
    assert {labels.speakers[i] for i in heard if i >= 0} == wanted and (heard < 0).sum() == 4


def test_without_a_lip_teacher_the_lip_encoder_labels_everybody(trained, built, tmp_path, caplog):
    (tmp_path / "mouths").symlink_to(trained / "mouths")
    run = run_of(built, tmp_path)
    store = lip.mouth_samples(run)[0].store
    given = {}
    for name in ("bundled", "its own"):
        labels = PoseLabels.load(lip.labelled(run))
        given[name] = labels.poses[labels.found]
        encoder = load_network("lip-encoder", "bundled" if name == "bundled" else tmp_path)
        torch.testing.assert_close(torch.from_numpy(given[name]), lip.read_rows(encoder, store))
        assert not labels.poses[~labels.found].any() and len(store) == labels.found.sum()
        (tmp_path / "poses_grid.npz").unlink()
        if name == "bundled":
            (tmp_path / "lip-encoder.safetensors").symlink_to(trained / "lip-encoder.safetensors")
    assert not np.allclose(given["bundled"], given["its own"])
    assert caplog.text.count("No lip-encoder.safetensors") == 1


def test_a_sample_without_sound_teaches_mouths_but_no_poses(trained, built):
    mute = next(s.key for s in ShardReader(built) if s.samples is None)
    labels = PoseLabels.load(trained / "poses_grid.npz")
    place = labels.ids.index(mute)
    assert mute in CropStore(trained / "mouths").clip_ids and labels.clip(place)[1].any()
    assert labels.splits[place] == "train" and place not in labels.split("train")
    assert place not in np.load(trained / "run_poses" / "sounds.npz")["clip"]
    with pytest.raises(FlashLipsError, match="has no sound"):
        open_material(built, trained).sound(mute)


def test_a_sample_in_which_no_face_was_found_is_left_out_of_everything(trained, built):
    samples = [s for split in ("train", "val", "test") for s in ShardReader(built, split)]
    red = [s.key for s in samples if not s.labels["landmarks_found"].any()]
    clips = {c.id for c in open_material(built, trained).clips()}
    assert len(red) == 1 and len(samples) == 10 and clips == {s.key for s in samples} - set(red)
    assert set(ShardCrops(built).clip_ids) == {c for c in clips if c in {s.key for s in samples if s.about["split"] == "train"}}
    assert set(CropStore(trained / "mouths").clip_ids) == clips


# ---- how many numbers a pose has -------------------------------------------------------------------------------------------


def test_poses_of_several_sizes_are_trained_and_judged(trained, built, tmp_path, capsys):
    (tmp_path / "mouths").symlink_to(trained / "mouths")
    common = ["ablation", "--data", str(built), "--folder", str(tmp_path), "--extra"]
    assert main([*common, "0", "2", "--steps", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["size"] for row in rows] == ["8", "8+2"]
    assert all(row["chance"] == 1 / 2 for row in rows) and rows[0]["redrawn_db"] != rows[1]["redrawn_db"]
    assert main([*common, "-1"]) == 2
    assert "give 0 or more" in capsys.readouterr().err


def test_a_decoder_that_draws_what_was_asked_for_scores_best(trained, built, monkeypatch):
    class Brightness:
        config = LipEncoderConfig(mouth_px=96)

        def read_mouths(self, mouths):
            return mouths.mean((1, 2, 3))

        def opening(self, poses):
            return poses

    learnt, clips = lip.mouth_samples(run_of(built, trained))
    held_out = lip.lip_samples(learnt.store, clips, {c.id for c in clips if c.split != "train"})
    shown = ablation.mouths(held_out, np.arange(len(held_out.features))).mean((1, 2, 3)).numpy()
    held_out, network = replace(held_out, opening=shown), lip.MouthDecoder(lip.start_teacher(learnt.features)).eval()
    rows = []
    for drawn in (lambda network, samples, references, targets: ablation.mouths(samples, targets),
                  lambda network, samples, references, targets: ablation.mouths(samples, references)):  # fmt: skip
        monkeypatch.setattr(ablation, "redraw", drawn)
        rows.append(ablation.judged(network, learnt, held_out, Brightness(), pairs=64))
    right, copied = rows
    assert right.size == "8+4" and right.redrawn_db == pytest.approx(100) and copied.redrawn_db < 60
    assert right.following > 0.99 > 0.7 > copied.following


def test_a_speaker_that_poses_give_away_is_named_and_one_that_they_hide_is_not(trained, built):
    samples, _ = lip.mouth_samples(run_of(built, trained))
    network = lip.MouthDecoder(lip.start_teacher(samples.features, 0)).eval()
    hidden, told = np.zeros_like(samples.features), np.zeros_like(samples.features)
    for number, clips in enumerate(samples.clips_of_speaker.values()):
        told[np.concatenate([samples.rows_of_clip[c] for c in clips])] = number * samples.features.std(0)
    named = [ablation.speakers_named(network, replace(samples, features=f))[0] for f in (told, hidden)]
    assert named[0] == 1 and named[1] == pytest.approx(0.5)


def test_an_ablation_without_people_held_out_is_refused(trained, built):
    with pytest.raises(FlashLipsError, match="two that are held out"):
        samples, clips = lip.mouth_samples(run_of(built, trained))
        with pytest.MonkeyPatch.context() as patch:
            everybody = [replace(c, split="train") for c in clips]
            patch.setattr(lip, "mouth_samples", lambda run: (samples, everybody))
            ablation.ablate(run_of(built, trained), [0], 1)


# ---- what belongs together -------------------------------------------------------------------------------------------------


def test_landmarks_jaw_sound_and_mouths_of_a_frame_are_its_samples_own(trained, built):
    material, store = open_material(built, trained), CropStore(trained / "mouths")
    clips = {c.id: c for c in material.clips()}
    for sample in ShardReader(built, "test"):
        clip, rows = clips[sample.key], np.flatnonzero(sample.labels["landmarks_found"])
        frames = np.array(sample.about["frames"])[rows]
        assert len(clip) == sample.about["num_frames"] == FRAMES and np.flatnonzero(clip.found).tolist() == frames.tolist()
        assert 0 < len(frames) < FRAMES and not clip.landmarks[~clip.found].any()
        assert np.array_equal(clip.landmarks[frames], sample.labels["landmarks"].numpy()[rows])
        assert np.array_equal(clip.points[frames[0], 3], clip.landmarks[frames[0], LANDMARKS.index(61)])
        jaw = material.jaw(sample.key)
        shapes = sample.labels["blendshapes"].numpy()[rows, BLENDSHAPES.index("jawOpen")]
        assert np.array_equal(jaw[frames], shapes) and np.isnan(jaw[~clip.found]).all()
        assert np.array_equal(material.sound(sample.key), sample.samples.numpy()) and len(sample.samples) == FRAMES * 640
        own = np.flatnonzero(store.clip_ids[store.clip_of] == sample.key)
        assert store.frame_of[own].tolist() == frames.tolist()
        assert np.array_equal(store.images[own], cut_mouths(sample.crops(rows.tolist())))
    with pytest.raises(FlashLipsError, match="has no clip s1/train/a, which the labels name"):
        material.sound("s1/train/a")


@pytest.mark.parametrize("side", [80, 320, 640])
def test_mouths_are_cut_where_grids_are(side):
    """Each pixel of a picture that holds its own place, in the square's coordinates, says where it was cut from."""
    ticks = (torch.arange(side) + 0.5) / side * STORED_MARGIN - (STORED_MARGIN - 1) / 2
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    mouths = cut_mouths(torch.stack([x, y, x * 0])[None] * 2 - 1)[0] / 255
    left, top, right, bottom = STORED_MOUTH
    places = (np.arange(STORED_PX) + 0.5) / STORED_PX
    inner = slice(4, -12)  # the picture ends at 1, the region below it does not
    np.testing.assert_allclose(mouths[50, inner, 0], left + (right - left) * places[inner], atol=0.004)
    np.testing.assert_allclose(mouths[inner, 50, 1], top + (bottom - top) * places[inner], atol=0.004)


def test_a_larger_set_is_shrunk_to_what_the_editor_reads(built):
    stored, small = ShardCrops(built), ShardCrops(built, largest=80)
    rows = np.array([0, 9])
    assert stored.batch(rows).shape[-1] == round(PX * STORED_MARGIN) and small.batch(rows).shape == (2, 3, 80, 80)
    assert (torch.nn.functional.avg_pool2d(stored.batch(rows), 2) - small.batch(rows)).abs().mean() < 0.02
    assert torch.equal(ShardCrops(built, largest=400).batch(rows), stored.batch(rows))


def test_where_many_people_speak_none_is_drawn_more_than_their_clips_are():
    def shares(clips_of):
        person = np.concatenate([np.repeat(np.arange(len(clips_of)), clips_of), [-1]])
        starts = np.arange(len(person) + 1)
        return PoseTracks(starts, starts[1:, None], starts[1:, None], starts[1:] > 0, person).shares

    assert shares([70, 20, 10]) == pytest.approx([1 - SILENT_SHARE - OTHERS_SHARE, OTHERS_SHARE, SILENT_SHARE, 0])
    assert shares([12, 10, 10, 8]) == pytest.approx([0.88 * 0.3, 0.88 * 0.7, 0.12, 0])
    assert shares([5])[1] == 0


# ---- preset "full" ---------------------------------------------------------------------------------------------------------


def test_the_papers_stages_learn_from_a_built_set(built, teachers, trained, tmp_path, monkeypatch):
    put_tiny_judges_in(monkeypatch)
    (tmp_path / "mouths").symlink_to(trained / "mouths")
    small = ["--preset", "full", "steps=1", "batch_size=2", "precision=fp32", "tensorboard=False"]
    pixels = ["references=1", "crop_px=64"]
    assert train("editor-joint", built, teachers, tmp_path, *small, *pixels, "network=tiny") == 0
    assert train("lip-encoder", built, teachers, tmp_path, *small) == 0
    assert train("refinement", built, teachers, tmp_path, *small, *pixels) == 0
    assert isinstance(load_network("editor", tmp_path), EditorUNet) and load_network("lip-encoder", tmp_path) is not None
    assert set(PoseLabels.load(tmp_path / "poses_grid.npz").splits) == {"train", "val", "test"}


# ---- what is missing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["prepare", "codec", "lip-teacher", "looks", "lip-encoder"])
def test_a_set_without_landmarks_is_refused_in_one_sentence(stage, bare, teachers, trained, tmp_path, capsys):
    for name in ("codec.safetensors", "lip-encoder.safetensors", "poses_grid.npz"):
        (tmp_path / name).symlink_to(trained / name)
    assert train(stage, bare, teachers, tmp_path) == 2
    error = capsys.readouterr().err
    assert "was built without landmarks, which this stage needs; build it again with --landmarker." in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("lip-teacher", "run the stage 'prepare' first"),
        ("lip-encoder", "run the stage 'lip-teacher' first"),
        ("editor", "run the stage 'looks' first"),
        ("poses", "run the stage 'prepare' first"),
    ],
)
def test_a_stage_before_its_time_names_the_one_that_is_missing(stage, words, built, teachers, tmp_path, capsys):
    assert train(stage, built, teachers, tmp_path, *STAGES[stage]) == 2
    assert words in capsys.readouterr().err


def test_a_run_folder_of_other_clips_and_folders_that_are_no_data_are_one_sentence(trained, built, bare, teachers, tmp_path):
    other = run_of(built, tmp_path)
    (tmp_path / "mouths").mkdir()
    table = dict(np.load(trained / "mouths" / "table.npz"))
    np.savez(tmp_path / "mouths" / "table.npz", **table | {"clip_ids": [f"x{i}" for i in table["clip_ids"]]})
    np.save(tmp_path / "mouths" / "crops.npy", np.zeros((1, 1, 1, 3), np.uint8))
    with pytest.raises(FlashLipsError, match="holds mouths of other clips than"):
        lip.mouth_samples(other)
    with pytest.raises(FlashLipsError, match="neither a training set nor the folder grid_people"):
        open_material(tmp_path, tmp_path).prepare(teachers, 256)
    with pytest.raises(FlashLipsError, match="run the stage 'prepare' first"):
        open_material(tmp_path, tmp_path).clips()
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (stopped / "build.json").write_bytes((built / "build.json").read_bytes())
    with pytest.raises(FlashLipsError, match="No finished training set"):
        open_material(stopped, tmp_path).clips()
