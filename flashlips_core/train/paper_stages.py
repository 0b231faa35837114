"""The editor's stages of preset "full": the paper's networks, losses and schedule (``paper``), from stored pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from .. import checkpoint
from ..codec import load_codec
from ..dataset.store import CropStore
from ..loading import STAGE_1, load_network
from ..models.lip_encoder import LipTeacher
from . import lip, stages
from .batches.pictures import PictureSource, picture_batches
from .editor import paper
from .loop.processes import own_device
from .loop.trainer import MakeBatch, TrainConfig


def editor(run: stages.Run) -> Path:
    """Stage 1: masked reconstruction with all six losses; poses are the lip encoder's."""
    device, judge, config = _prepared(run, "run_editor")
    start = run.options["start"]
    network = load_network("editor", start).requires_grad_(True) if start else paper.build_editor(run.options["network"])
    reader = load_network("lip-encoder", run.folder, device)
    batches = _batches(run, PictureSource(_stores(run)))
    trained = paper.train_masked(network, batches, judge, paper.read_by(reader), config, run.progress)
    return _save(run, trained, STAGE_1, judge)


def editor_joint(run: stages.Run) -> Path:
    """Stage 1 with the lip teacher trained jointly; also writes the teacher and its labels, for the stage "lip-encoder"."""
    samples, clips = stages.mouth_samples(run)
    teacher = _start_teacher(run, samples)
    _, judge, config = _prepared(run, "run_editor_joint")
    network = paper.TaughtEditor(paper.build_editor(run.options["network"]), teacher)
    features, stores = lip.speaker_features(clips), _stores(run)
    batches = _batches(run, PictureSource(stores, [_expressions(store, features) for store in stores]))
    trained = paper.train_masked(network, batches, judge, paper.read_by_teacher, config, run.progress)
    run.save(trained.teacher, "lip-teacher")
    poses = lip.label_rows(trained.teacher.cpu(), samples, np.arange(len(samples.features)))
    stages.save_labels(run, poses, samples, clips)
    return _save(run, trained.editor, STAGE_1, judge)


def refinement(run: stages.Run) -> Path:
    """Stage 1b: mask-free self-refinement with the same losses."""
    device, judge, config = _prepared(run, "run_refinement")
    drawer = load_network("editor", stages.stage_1(run), device)
    reader = load_network("lip-encoder", run.folder, device)
    trained = paper.train_mask_free(drawer, _batches(run, PictureSource(_stores(run))), judge, reader, config, run.progress)
    return _save(run, trained, "editor", judge)


def _prepared(run: stages.Run, folder: str) -> tuple[str, paper.PaperJudge, TrainConfig]:
    """The device, the judges and the loop's config."""
    options = run.options
    device = options["device"] or own_device()
    judge = paper.load_judge(load_codec(options["codec"], device), run.weights, device, options["recompute"])
    fields = {key: value for key, value in options.items() if key in TrainConfig.__dataclass_fields__}
    config = TrainConfig(str(run.folder / folder), weights=paper.paper_weights(), **(fields | {"device": device}))
    return device, judge, config


def _batches(run: stages.Run, source: PictureSource) -> MakeBatch:
    return picture_batches(source, run.options["batch_size"], run.options["references"], run.options["crop_px"])


def _stores(run: stages.Run) -> list[CropStore]:
    """Real faces only."""
    return [run.material.faces(name, run.options["crop_px"]) for name in run.material.face_stores]


def _start_teacher(run: stages.Run, samples: lip.LipSamples) -> LipTeacher:
    """The checkpoint that the option ``teacher`` names, or one whose numbers are the expressions' principal components."""
    if run.options["teacher"]:
        path = run.options["teacher"]
        return checkpoint.load(path, "lip-teacher", {"LipTeacher": stages.build_teacher}).requires_grad_(True)
    rows = np.concatenate([samples.rows_of_clip[c] for clips in samples.clips_of_speaker.values() for c in clips])
    return lip.start_teacher(samples.features[rows])


def _expressions(store: CropStore, features: dict[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Expression features (N, E) of a store's frames, from each clip's (see :func:`lip.speaker_features`)."""
    return np.stack([features[str(store.clip_ids[c])][0][f] for c, f in zip(store.clip_of, store.frame_of, strict=True)])


def _save(run: stages.Run, network: nn.Module, role: str, judge: paper.PaperJudge) -> Path:
    return run.save(network, role, crop_px=run.options["crop_px"], judged_by=judge.names())
