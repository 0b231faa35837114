"""The stages of the bundled model, in order, over one run folder: each reads what earlier ones left there.

The data folder holds GRID's videos or a built training set (see ``material``); rendered heads lie in the run folder, once made.
"""

from __future__ import annotations

import functools
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import checkpoint
from ..codec import CELL_PX, load_codec
from ..dataset.store import Clip, CropStore, has_store
from ..face.motion import LANDMARKER_FILE
from ..heads.set import load_set
from ..loading import STAGE_1, load_network, load_part
from ..models.lip_encoder import LIP_ENCODER_MINI, LIP_ENCODER_RESNET34, LipTeacher, LipTeacherConfig
from ..pretrained import load_vgg
from ..types import FlashLipsError, Progress
from . import lip
from .batches import labels
from .batches.frames import EditorFrames, encode_looks, load_frames
from .batches.material import FIRST, HEADS, MOUTHS, PEOPLE, SET_FACES, Material, open_material
from .codec import train_codec
from .detail import train_detail
from .editor.distil import STUDENTS, distil_editor
from .editor.losses import PerceptualLoss
from .editor.pairs import refine_editor, train_editor
from .loop.processes import is_first_process

log = logging.getLogger(__name__)

LIP_ENCODERS = {"mini": LIP_ENCODER_MINI, "resnet34": LIP_ENCODER_RESNET34}
CODEC_TEACHER = "TAESDXL (MIT, Ollin Boer Bohan)"
POSES = "poses_grid.npz"  # the teacher's labels, whatever they were learnt from


@dataclass(frozen=True)
class Run:
    """Where a stage reads and writes."""

    data: Path
    weights: Path  # frozen teachers: TAESDXL, Whisper tiny
    folder: Path
    options: dict[str, Any]  # all settings of the stage, see ``presets``
    progress: Progress | None = None
    preset: str = "mini"

    def save(self, network: torch.nn.Module, role: str, file: str | None = None, **notes: Any) -> Path:
        """Write a checkpoint with its training notes, named after its role unless ``file`` says otherwise."""
        path = self.folder / f"{file or role}.safetensors"
        made_by = {"preset": self.preset, "options": self.options, "torch": torch.__version__}
        licence = f"{self.material.licence}; {self.material.credit}"
        everything = {"version": "0.1.0", "licence": licence} | made_by | notes
        if is_first_process():
            checkpoint.save(network, path, role, everything)
        return path

    @property
    def device(self) -> str:
        """Where the stage's frozen networks compute; the loop puts the trained one on the same."""
        return self.options.get("device") or "cpu"

    @functools.cached_property
    def material(self) -> Material:
        """What ``data`` holds."""
        return open_material(self.data, self.folder)


def prepare(run: Run) -> Path:
    """Make the landmarks and stored crops that the data folder lacks, see ``material``."""
    run.material.prepare(run.weights, run.options["stored_px"], run.progress)
    return run.folder


def face_stores(run: Run) -> list[CropStore]:
    """Training faces, and the rendered heads where they exist."""
    stores = [run.material.faces(name) for name in run.material.face_stores]
    return stores + ([CropStore(run.folder / HEADS)] if _has_heads(run) else [])


def mouth_samples(run: Run) -> tuple[lip.LipSamples, list[Clip]]:
    """Stored mouths of all clips, of which the training clips alone are drawn; and the clips."""
    folder, clips = run.folder / MOUTHS, run.material.clips()
    if not has_store(folder):
        raise FlashLipsError(f"No mouths in {folder}; run the stage 'prepare' first.")
    store, known = CropStore(folder), {c.id for c in clips}
    if any(str(i) not in known for i in store.clip_ids):
        raise FlashLipsError(f"{folder} holds mouths of other clips than {run.data}; choose another --folder, or delete it.")
    samples = lip.lip_samples(store, clips, {c.id for c in clips if c.split == "train"})
    if not samples.clips_of_speaker:
        raise FlashLipsError(f"No clip of {run.data} is to be learnt from; build the set with smaller shares for val and test.")
    return samples, clips


def codec(run: Run) -> Path:
    """Distil TAESDXL."""
    network = train_codec(face_stores(run), str(run.weights), str(run.folder / "run_codec"), progress=run.progress, **run.options)
    return run.save(network, "codec", teacher=CODEC_TEACHER)


def lip_teacher(run: Run) -> Path:
    """Learn what the 12 numbers mean, and label every clip with them."""
    samples, clips = mouth_samples(run)
    teacher = lip.train_teacher(samples, str(run.folder / "run_lip_teacher"), progress=run.progress, **run.options)
    path = run.save(teacher, "lip-teacher")
    save_labels(run, lip.label_rows(teacher, samples, np.arange(len(samples.features))), samples, clips)
    return path


def save_labels(run: Run, poses: Tensor, samples: lip.LipSamples, clips: list[Clip]) -> None:
    """Write the poses (N, 12) of all stored frames, whose and for what they are, and everybody's rest pose."""
    poses = poses.numpy()
    by_id = {c.id: c for c in clips}
    own = [by_id[str(i)] for i in samples.store.clip_ids]
    starts = np.cumsum([0] + [len(c) for c in own])
    place = starts[samples.store.clip_of] + samples.store.frame_of
    found = np.zeros(starts[-1], bool)
    found[place] = True
    full = np.zeros((starts[-1], poses.shape[1]), np.float32)
    full[place] = poses
    rest_rows = np.concatenate([samples.rows_of_clip[c] for s in samples.clips_of_speaker.values() for c in s])
    closed = rest_rows[samples.opening[rest_rows] <= np.quantile(samples.opening[rest_rows], 0.15)]
    if not is_first_process():
        return
    np.savez(
        run.folder / POSES, ids=[c.id for c in own], num_frames=[len(c) for c in own], poses=full, found=found,
        rest=np.median(poses[closed], axis=0).astype(np.float32),
        speakers=[c.speaker for c in own], splits=[c.split for c in own], has_voice=[c.has_voice for c in own],
    )  # fmt: skip


def labelled(run: Run) -> Path:
    """The teacher's labels; where no lip teacher was trained, what the run's or the bundled lip encoder reads."""
    path = run.folder / POSES
    if not path.is_file():
        samples, clips = mouth_samples(run)
        encoder = load_network("lip-encoder", _own_or_bundled(run, "lip-encoder"))
        save_labels(run, lip.read_rows(encoder, samples.store), samples, clips)
    return path


def read_poses(path: Path) -> dict[str, np.ndarray]:
    """Clip id -> poses (T, 12)."""
    if not path.is_file():
        raise FlashLipsError(f"No {path.name} in {path.parent}; run the stage 'lip-teacher' first.")
    table = np.load(path)
    parts = np.split(table["poses"], np.cumsum(table["num_frames"])[:-1])
    return {str(i): p for i, p in zip(table["ids"], parts, strict=False)}


def heads(run: Run) -> Path:
    """Find the landmarks of the rendered heads (the folder ``synth`` that train.synthetic makes) and store them as crops."""
    rendered = load_set(run.folder / "synth")
    images = rendered["images"]
    clips, rows = labels.head_clips(images, rendered["identity"], rendered["group"], run.weights / LANDMARKER_FILE, run.progress)
    labels.build_head_store(images, clips, rows, run.folder / HEADS)
    return run.folder / HEADS


def _has_heads(run: Run) -> bool:
    return has_store(run.folder / HEADS)


def lip_encoder(run: Run) -> Path:
    """Distil the teacher's labels into the network that reads the picture alone."""
    table = read_poses(run.folder / POSES)
    samples, _ = mouth_samples(run)
    store = samples.store
    if any(str(i) not in table for i in store.clip_ids):
        raise FlashLipsError(f"{POSES} in {run.folder} was made of other clips; run the stage 'lip-teacher' again.")
    poses = np.stack([table[str(store.clip_ids[c])][f] for c, f in zip(store.clip_of, store.frame_of, strict=False)])
    options = dict(run.options)
    config = _named("lip encoder", LIP_ENCODERS, options.pop("network"))
    run_dir = str(run.folder / "run_lip_encoder")
    student = lip.train_student(samples, torch.from_numpy(poses), run_dir, config, progress=run.progress, **options)
    return run.save(student, "lip-encoder")


# Looks of each clip, at most, and frames of each look
LOOKS = {PEOPLE: (3, 20), FIRST: (1, 20), HEADS: (3, 12), SET_FACES: (3, 20)}
MANY_CLIPS = 300  # of a built set: fewer get more looks each, as GRID's people do


def looks(run: Run) -> Path:
    """Encode augmented looks of every training clip for the editor; the option ``only`` names one store, to share the work.

    ``rounds``: so many times as many looks of each clip.
    """
    options = dict(run.options) | {"device": run.device}
    only, rounds, faces = options.pop("only"), options.pop("rounds"), run.material
    codec = load_codec(str(run.folder / "codec.safetensors"), run.device)
    reader = load_network("lip-encoder", run.folder, run.device)
    stored = [name for name in faces.face_stores if faces.is_stored(name)] + ([HEADS] if _has_heads(run) else [])
    if not stored:
        raise FlashLipsError(f"No crops in {run.folder}; run the stage 'prepare' first, or give --data a built training set.")
    if only not in (None, *stored):
        raise FlashLipsError(f"No crops are called '{only}' here; leave the setting 'only' out, or choose {' or '.join(stored)}.")
    for seed, (name, (count, frames)) in enumerate(LOOKS.items()):
        out = run.folder / f"looks_{name}"
        if name in stored and only in (None, name) and not (out / "frames.npz").is_file():
            is_still = name == HEADS
            store = CropStore(run.folder / HEADS) if is_still else faces.faces(name, options["crop_px"])
            if name == SET_FACES:
                count = min(count, max(1, MANY_CLIPS // len(store.clip_ids)))
            count *= rounds
            encode_looks(store, codec, reader, out, count, frames, seed, is_still=is_still, progress=run.progress, **options)
    return run.folder


def editor(run: Run) -> Path:
    """Stage 1: masked reconstruction, and mask-free edits of pairs of real frames; the option ``start`` names a checkpoint."""
    options = dict(run.options)
    if options["start"]:
        options["start"] = load_network("editor", options["start"])
    frames, judges = _frames(run), _judges(run, options.pop("vgg_stages"))
    network = train_editor(frames, run_dir=str(run.folder / "run_editor"), progress=run.progress, **judges, **options)
    return run.save(network, STAGE_1, crop_px=CELL_PX * frames.latents.shape[-1])


def refinement(run: Run) -> Path:
    """Stage 1b: mask-free."""
    options, frames = dict(run.options), _frames(run)
    drawer = load_network("editor", stage_1(run), run.device)
    judges = _judges(run, options.pop("vgg_stages"))
    run_dir = str(run.folder / "run_refinement")
    network = refine_editor(drawer, frames, run_dir=run_dir, progress=run.progress, **judges, **options)
    return run.save(network, "editor", crop_px=CELL_PX * frames.latents.shape[-1])


def distil(run: Run) -> Path:
    """Teach another network what the refined editor does; ``teacher`` names another editor, ``start`` a pupil to go on with."""
    options, frames = dict(run.options), _frames(run)
    named, crop_px = options.pop("teacher"), CELL_PX * frames.latents.shape[-1]
    teacher = load_part("editor", named or run.folder, run.device)
    if teacher.is_stage_1:
        raise FlashLipsError("The teacher was trained on masked frames only (stage 1); choose a refined editor.")
    if teacher.crop_px != crop_px:
        raise FlashLipsError(f"The teacher edits crops of {teacher.crop_px} px, the looks have {crop_px}; encode them so.")
    _named("editor", STUDENTS, options["network"])
    if options["start"]:
        options["start"] = load_network("editor", options["start"])
    codec, run_dir = load_codec(str(run.folder / "codec.safetensors"), run.device), str(run.folder / "run_distil")
    network = distil_editor(teacher.network, frames, codec, run_dir, progress=run.progress, **options)
    return run.save(network, "editor", "editor-distilled", crop_px=crop_px, codec=teacher.codec, teacher=teacher.name)


def detail(run: Run) -> Path:
    """Sharpen the decoder on the refined editor's edits; its latents stay what they were."""
    latest, plain = run.folder / "codec.safetensors", run.folder / "codec-plain.safetensors"
    codec = load_codec(str(plain if plain.is_file() else latest), run.device)
    editor, run_dir = load_network("editor", run.folder, run.device), str(run.folder / "run_detail")
    network = train_detail(codec, editor, _frames(run), run_dir, progress=run.progress, **run.options)
    if not plain.is_file() and is_first_process():
        shutil.copy(latest, plain)  # what this stage starts from, also when it is run again
    return run.save(network, "codec", teacher=CODEC_TEACHER)


def stage_1(run: Run) -> Path:
    """The editor that the stage "editor" left."""
    path = run.folder / f"{STAGE_1}.safetensors"
    if not path.is_file():
        raise FlashLipsError(f"No {path.name} in {run.folder}; run the stage 'editor' first.")
    return path


def _judges(run: Run, vgg_stages: int) -> dict[str, Any]:
    """What the editor is trained against; ``vgg_stages`` of VGG are compared (0: none, the fastest)."""
    codec = load_codec(str(run.folder / "codec.safetensors"), run.device)
    perceptual = PerceptualLoss(load_vgg(run.weights, run.device, vgg_stages)) if vgg_stages else None
    return {"codec": codec, "lip_encoder": load_network("lip-encoder", run.folder, run.device), "perceptual": perceptual}


def _named(what: str, known: dict[str, Any], name: str) -> Any:
    if name not in known:
        raise FlashLipsError(f"No {what} is called '{name}'; choose network={' or '.join(known)}.")
    return known[name]


def _frames(run: Run) -> EditorFrames:
    folders = sorted(p for p in run.folder.glob("looks_*") if (p / "frames.npz").is_file())
    if not folders:
        raise FlashLipsError(f"No encoded looks under {run.folder}; run the stage 'looks' first.")
    return load_frames(folders).near(run.device)


def build_teacher(config: dict[str, Any]) -> LipTeacher:
    """The lip teacher of a checkpoint's config."""
    return LipTeacher(checkpoint.config_from_dict(LipTeacherConfig, config))


def landmarks(run: Run) -> Path:
    """Make the stores of labelled faces and rendered heads that are missing, and train the landmark network on them."""
    from .landmarks.heads import prepare_heads
    from .landmarks.pictures import FaceStore, prepare_faces
    from .landmarks.training import LICENCE, TEST_STORES, open_stores, train_landmarks

    options, folder = dict(run.options), run.folder / "landmarks"
    folders = prepare_faces(run.data, run.weights, folder, run.progress) + prepare_heads(run.data, folder, run.progress)
    if options["start"]:
        options["start"] = load_network("landmarks", options["start"])
    test = {name: FaceStore(folder / name) for name in TEST_STORES}
    run_dir = str(run.folder / "run_landmarks")
    network = train_landmarks(open_stores(folders), run_dir, test=test, progress=run.progress, **options)
    return run.save(network, "landmarks", licence=LICENCE)


def _own_or_bundled(run: Run, role: str) -> str:
    """The run's network, or the bundled one where its stage was left out."""
    path = run.folder / f"{role}.safetensors"
    if path.is_file():
        return str(path)
    log.warning("No %s in %s: the bundled one is used.", path.name, run.folder)
    return "bundled"


def poses(run: Run) -> Path:
    """Flow matching from audio features to the labelled poses."""
    from .poses import PRESETS, PoseTraining, train

    names = {"run_dir": "run_poses", "out": "pose-model.safetensors"}
    paths = {key: str(run.folder / name) for key, name in names.items()}
    paths |= {"labels": str(labelled(run)), "audio_encoder": _own_or_bundled(run, "audio-encoder")}
    options = dict(run.options)
    _named("pose model", PRESETS, options["network"])
    options["preset"] = options.pop("network")
    if options.pop("told"):
        options["corpus"] = str(run.folder / "audio" / "corpus.npz")
    own = {key: options.pop(key) for key in list(options) if key in PoseTraining.__dataclass_fields__}
    return train(PoseTraining(data=str(run.data), **paths, **own), progress=run.progress, **options)
