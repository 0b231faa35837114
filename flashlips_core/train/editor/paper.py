"""The paper's own training of the editor: masked reconstruction and self-refinement against all six losses, from pixels.

B batch, R references, S crop side, h w latent size (S / 8). M is the lower-face mask at pixels, m at latents. The networks that
judge are the paper's where their files are at hand, else named stand-ins (``losses``). For GPUs: every step decodes whole crops.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ... import checkpoint
from ...codec import Codec, load_codec
from ...dataset.store import CropStore
from ...loading import STAGE_1, load_network
from ...models.editor_transformer import TRANSFORMER_300M, EditorTransformer
from ...models.editor_unet import UNET_250M, UNET_MINI, EditorUNet
from ...models.lip_encoder import LipEncoder, LipTeacher, LipTeacherConfig, mouth_region
from ...models.masks import lower_face_mask
from ...pretrained import load_identity, load_vgg
from ...types import FlashLipsError, Progress
from .. import lip
from ..batches.pictures import PictureBatch, PictureSource, picture_batches
from ..loop.settings import of_full_size, setting
from ..loop.trainer import SHEET_BATCH, MakeBatch, Step, TrainConfig, fit, frozen_copy, one_by_one, step_generator
from ..run import Run, named
from .losses import PAPER_WEIGHTS, IdentityLoss, PerceptualLoss, l1, latent_mask, lips_l1
from .pairs import stage_1

log = logging.getLogger(__name__)

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet-250m": lambda: EditorUNet(UNET_250M),
    "transformer-300m": lambda: EditorTransformer(TRANSFORMER_300M),
    "unet-mini": lambda: EditorUNet(UNET_MINI),
}
READBACK_LIMIT = 0.5  # ours: mean square, in deviations, between drawn and read-back poses above which a variant is dropped
POSE_NOISE = 0.15  # ours: of the jointly trained teacher's poses, so that no detail can hide in them
SPREAD_WEIGHT = 0.1  # ours: pulls the jointly trained teacher's numbers to mean 0, deviation 1


@dataclass(frozen=True)
class PaperSettings(TrainConfig):
    """What the editor's stages of preset full have. 8 processes of 4 are the paper's batch of 32; fewer accumulate."""

    lr: float = 1e-4  # AdamW, OneCycle from 1e-4 to 1e-8
    ema: float = 0.9999  # ours
    validate_every: int = 5000
    batch_size: int = setting(4, "frames per step and process")
    crop_px: int = setting(512, "side of the editor's crop")  # ours
    # as at test time; ours in training, where the choice among them must be learnt
    references: int = setting(4, "other frames of the clip, of each frame")
    codec: str = setting("sdxl", "name, folder or file; any but sdxl is a stand-in")


@dataclass(frozen=True)
class PaperEditorSettings(PaperSettings):
    """Stage 1: masked reconstruction."""

    network: str = setting("unet-250m", "unet-250m or transformer-300m")
    steps: int = 1_000_000
    start: str | None = setting(None, "an editor to go on from")


@dataclass(frozen=True)
class PaperJointSettings(PaperSettings):
    """Stage 1 with the lip teacher trained jointly (preset full), instead of lip-teacher and the first editor."""

    network: str = setting("unet-250m", "unet-250m or transformer-300m")
    steps: int = 800_000  # before the distillation
    teacher: str | None = setting(None, "a lip teacher to go on from")


@dataclass(frozen=True)
class PaperRefinementSettings(PaperSettings):
    """Stage 1b: mask-free self-refinement."""

    steps: int = 200_000
    lr: float = 1e-5  # ours


P = TypeVar("P", bound=PaperSettings)

FULL_EDITOR = of_full_size(PaperEditorSettings())
FULL_JOINT = of_full_size(PaperJointSettings())
FULL_REFINEMENT = of_full_size(PaperRefinementSettings())


@dataclass(frozen=True)
class PaperJudge:
    """The frozen networks of the paper's losses."""

    codec: Codec
    perceptual: PerceptualLoss
    identity: IdentityLoss
    recompute: bool = False  # decode crop by crop, and again in the backward pass: memory of one crop instead of B

    def losses(self, z_hat: Tensor, z_target: Tensor, images: Tensor, lips: Tensor) -> dict[str, Tensor]:
        """All six terms, to be weighted by ``PAPER_WEIGHTS``.

        Args:
            z_hat, z_target: (B, 4, h, w), the edit and what it should have been.
            images: (B, 3, S, S) what it should have been, in pixels.
            lips: (B, 1, S, S) the mouth of those.
        """
        mask = lower_face_mask(*images.shape[2:]).to(images)
        decoded = self.decode(z_hat)
        return {
            "latent_l1": l1(z_hat, z_target),
            "latent_l1_masked": l1(z_hat, z_target, latent_mask(mask, z_hat.shape[2:]).expand(len(z_hat), -1, -1, -1)),
            "pixel_l1_masked": l1(decoded, images, mask.expand(len(images), -1, -1, -1)),
            "pixel_l1_lips": lips_l1(decoded, images, lips),
            "perceptual": self.perceptual(decoded, images),
            "identity": self.identity(decoded, images),
        }

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pixels, with gradients."""
        if not (self.recompute and torch.is_grad_enabled()):
            return self.codec.decode(latents)
        return one_by_one(self.codec.decode, latents)

    def names(self) -> dict[str, str]:
        """Which networks judge, for a checkpoint's notes; stand-ins say so."""
        identity = self.identity.name + (" (stand-in)" if self.identity.is_stand_in else "")
        return {"codec": self.codec.name, "perceptual": self.perceptual.name, "identity": identity}


def load_judge(codec: Codec, weights: str | Path, device: torch.device | str, recompute: bool = False) -> PaperJudge:
    """VGG19 and VGGFace2 from a folder, or the stand-ins that lie there; the log says which."""
    identity = IdentityLoss(load_identity(weights, device))
    judge = PaperJudge(codec, PerceptualLoss(load_vgg(weights, device)), identity, recompute)
    if identity.is_stand_in:
        log.warning("%s stands in for the paper's VGGFace2: its identity loss is not comparable with the paper's.", identity.name)
    log.info("judged by %s", ", ".join(f"{what} {name}" for what, name in judge.names().items()))
    return judge


ReadPoses = Callable[[nn.Module, PictureBatch, torch.Generator], tuple[Tensor, Tensor]]
"""Poses of a batch's frames (B, 12) and of their references (B, R, 12)."""


def read_by(lip_encoder: LipEncoder) -> ReadPoses:
    """Poses as a frozen lip encoder reads them from the pictures."""

    @torch.no_grad()
    def read(network: nn.Module, batch: PictureBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        references = lip_encoder(batch.references.flatten(0, 1)).unflatten(0, batch.references.shape[:2])
        return lip_encoder(batch.images), references

    return read


class TaughtEditor(nn.Module):
    """An editor and the lip teacher whose poses it is given: both learn from the reconstruction (paper, lip encoder)."""

    def __init__(self, editor: nn.Module, teacher: LipTeacher):
        super().__init__()
        self.editor, self.teacher = editor, teacher

    def poses(self, images: Tensor, expression: Tensor) -> Tensor:
        """(B, 3, S, S), (B, E) -> (B, 12)."""
        return self.teacher(expression, mouth_region(images, self.teacher.config.mouth_px))


def read_by_teacher(network: TaughtEditor, batch: PictureBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Poses as the network's own teacher makes them; the frames' carry gradients, and noise."""
    poses = network.poses(batch.images, batch.expression)
    with torch.no_grad():
        references = network.poses(batch.references.flatten(0, 1), batch.reference_expression.flatten(0, 1))
    noise = torch.randn(poses.shape, generator=generator)
    return poses + POSE_NOISE * noise.to(poses), references.unflatten(0, batch.references.shape[:2])


def masked_latents(codec: Codec, images: Tensor) -> tuple[Tensor, Tensor]:
    """z_src and z_masked of frames, (B, 4, h, w) twice, without gradients.

    The pixels are masked, as in the paper: a codec that sees the whole picture would carry the lips beyond the mask. The hidden
    latents are set to 0 as well, as they are when a stage-1 editor is run (ours).
    """
    with torch.no_grad():
        mask = lower_face_mask(*images.shape[2:]).to(images)
        z_src = codec.encode(images)
        z_masked = codec.encode(images * (1 - mask)) * (1 - latent_mask(mask, z_src.shape[2:]))
    return z_src, z_masked


def reference_latents(codec: Codec, references: Tensor) -> Tensor:
    """(B, R, 3, S, S) -> (B, R, 4, h, w), without gradients."""
    with torch.no_grad():
        return codec.encode(references.flatten(0, 1)).unflatten(0, references.shape[:2])


def masked_step(judge: PaperJudge, read: ReadPoses) -> Step:
    """Stage 1: redraw the hidden lower face of each frame from its pose and references (Eqs. 1-3)."""

    def step(network: nn.Module, batch: PictureBatch, generator: torch.Generator) -> dict[str, Tensor]:
        editor = network.editor if isinstance(network, TaughtEditor) else network
        poses, reference_poses = read(network, batch, generator)
        z_src, z_masked = masked_latents(judge.codec, batch.images)
        context = editor.prepare_references(reference_latents(judge.codec, batch.references), reference_poses)
        losses = judge.losses(editor(z_masked, context, poses), z_src, batch.images, batch.lips)
        if poses.requires_grad:
            losses["spread"] = poses.float().mean(0).square().mean() + (poses.float().std(0) - 1).square().mean()
        return losses

    return step


def refinement_step(judge: PaperJudge, lip_encoder: LipEncoder, drawer: nn.Module) -> Step:
    """Stage 1b: pairs (src, mod) that differ in the mouth alone supervise mask-free edits both ways.

    The stage-1 editor draws mod with a pose borrowed from another frame of the batch. Where the lip encoder does not read that
    pose back from it, the pair is the frame twice, which teaches to leave it as it is.

    Args:
        drawer: that editor, frozen; not the network that learns.
    """
    read = read_by(lip_encoder)

    def step(network: nn.Module, batch: PictureBatch, generator: torch.Generator) -> dict[str, Tensor]:
        own, reference_poses = read(network, batch, generator)
        borrowed = own.roll(1, 0)
        z_references = reference_latents(judge.codec, batch.references)
        z_src, z_masked = masked_latents(judge.codec, batch.images)
        with torch.no_grad():
            mask = lower_face_mask(*batch.images.shape[2:]).to(batch.images)
            drawn = judge.codec.decode(drawer(z_masked, drawer.prepare_references(z_references, reference_poses), borrowed))
            variant = torch.lerp(batch.images, drawn.clamp(-1, 1), mask)
            is_kept = (lip_encoder(variant) - borrowed).square().mean(1) < READBACK_LIMIT
            variant = torch.where(is_kept[:, None, None, None], variant, batch.images)
            borrowed = torch.where(is_kept[:, None], borrowed, own)
            z_mod = judge.codec.encode(variant)
        context = network.prepare_references(z_references.repeat(2, 1, 1, 1, 1), reference_poses.repeat(2, 1, 1))
        z_hat = network(torch.cat([z_mod, z_src]), context, torch.cat([own, borrowed]))
        # The variant's own lips are not outlined: its direction counts the outline of the frame that it was made from.
        images, lips = torch.cat([batch.images, variant]), batch.lips.repeat(2, 1, 1, 1)
        return judge.losses(z_hat, torch.cat([z_src, z_mod]), images, lips)

    return step


def sheet_of(batch: PictureBatch, judge: PaperJudge, read: ReadPoses, is_masked: bool) -> Callable[[nn.Module], Tensor]:
    """A picture of up to four frames: as they are, and as the network redraws them with their own poses."""
    count = min(4, len(batch.images))

    @torch.no_grad()
    def draw(network: nn.Module) -> Tensor:
        was_training = network.training
        network.eval()
        editor = network.editor if isinstance(network, TaughtEditor) else network
        device = next(network.parameters()).device
        parts = {name: None if value is None else value[:count].to(device) for name, value in vars(batch).items()}
        few = PictureBatch(**parts)
        poses, reference_poses = read(network, few, torch.Generator(device).manual_seed(0))
        z_src, z_masked = masked_latents(judge.codec, few.images)
        context = editor.prepare_references(reference_latents(judge.codec, few.references), reference_poses)
        redrawn = judge.codec.decode(editor(z_masked if is_masked else z_src, context, poses))
        network.train(was_training)
        return torch.cat([torch.cat(list(rows), 2) for rows in (few.images, redrawn)], 1)

    return draw


def build_editor(network: str) -> nn.Module:
    """An editor by its name, with fresh weights."""
    return named("editor", NETWORKS, network)().to(memory_format=torch.channels_last)


def train_masked(
    network: nn.Module,
    batches: MakeBatch,
    judge: PaperJudge,
    read: ReadPoses,
    config: TrainConfig,
    progress: Progress | None = None,
) -> nn.Module:
    """Stage 1 of an editor, or of a :class:`TaughtEditor` with ``read_by_teacher``; ``batches`` give PictureBatches."""
    shown = batches(step_generator(config.seed, SHEET_BATCH))
    if isinstance(network, TaughtEditor) and len(shown.images) < 2:
        raise FlashLipsError("The jointly trained teacher needs batch_size=2 or more: it standardises its poses over the batch.")
    sheet = sheet_of(shown, judge, read, is_masked=True)
    return fit(network, batches, masked_step(judge, read), config, progress=progress, sheet=sheet)


def train_mask_free(
    drawer: nn.Module,
    batches: MakeBatch,
    judge: PaperJudge,
    lip_encoder: LipEncoder,
    config: TrainConfig,
    progress: Progress | None = None,
) -> nn.Module:
    """Stage 1b from the weights of stage 1, whose editor also draws the variants."""
    network = copy.deepcopy(drawer).requires_grad_(True)
    sheet = sheet_of(batches(step_generator(config.seed, SHEET_BATCH)), judge, read_by(lip_encoder), is_masked=False)
    step = refinement_step(judge, lip_encoder, frozen_copy(drawer))
    return fit(network, batches, step, config, progress=progress, sheet=sheet)


def paper_weights() -> dict[str, float]:
    """The paper's weights of its six terms, and ours of the jointly trained teacher's pull."""
    return PAPER_WEIGHTS | {"spread": SPREAD_WEIGHT}


# ---- the stages ------------------------------------------------------------------------------------------------------------


def editor(run: Run[PaperEditorSettings]) -> Path:
    """Masked reconstruction with all six losses; poses are the lip encoder's."""
    settings, judge = run.settings, judge_of(run)
    start = settings.start
    network = load_network("editor", start).requires_grad_(True) if start else build_editor(settings.network)
    read = read_by(load_network("lip-encoder", run.folder, run.device))
    trained = train_masked(
        network, _batches(run, PictureSource(_stores(run))), judge, read, _config(run, "run_editor"), run.progress
    )
    return _save(run, trained, STAGE_1, judge)


def editor_joint(run: Run[PaperJointSettings]) -> Path:
    """Also writes the teacher and its labels, for the stage "lip-encoder"."""
    samples, clips = lip.mouth_samples(run)
    teacher, judge = _start_teacher(run, samples), judge_of(run)
    network = TaughtEditor(build_editor(run.settings.network), teacher)
    features, stores = lip.speaker_features(clips), _stores(run)
    batches = _batches(run, PictureSource(stores, [_expressions(store, features) for store in stores]))
    trained = train_masked(network, batches, judge, read_by_teacher, _config(run, "run_editor_joint"), run.progress)
    run.save(trained.teacher, "lip-teacher")
    poses = lip.label_rows(trained.teacher.cpu(), samples, np.arange(len(samples.features)))
    lip.save_labels(run, poses, samples, clips)
    return _save(run, trained.editor, STAGE_1, judge)


def refinement(run: Run[PaperRefinementSettings]) -> Path:
    """Mask-free self-refinement with the same losses."""
    judge, drawer = judge_of(run), load_network("editor", stage_1(run), run.device)
    reader = load_network("lip-encoder", run.folder, run.device)
    batches = _batches(run, PictureSource(_stores(run)))
    trained = train_mask_free(drawer, batches, judge, reader, _config(run, "run_refinement"), run.progress)
    return _save(run, trained, "editor", judge)


def judge_of(run: Run[P]) -> PaperJudge:
    """The judges, on the run's device."""
    settings = run.settings
    return load_judge(load_codec(settings.codec, run.device), run.weights, run.device, settings.recompute)


def _config(run: Run[P], name: str) -> P:
    return replace(run.config(name), weights=paper_weights())


def _batches(run: Run[P], source: PictureSource) -> MakeBatch:
    settings = run.settings
    return picture_batches(source, settings.batch_size, settings.references, settings.crop_px)


def _stores(run: Run[P]) -> list[CropStore]:
    """Real faces only."""
    return [run.material.faces(name, run.settings.crop_px) for name in run.material.face_stores]


def _start_teacher(run: Run[PaperJointSettings], samples: lip.LipSamples) -> LipTeacher:
    """The checkpoint that is named, or a teacher whose numbers are the expressions' principal components."""
    if run.settings.teacher:
        return checkpoint.load(run.settings.teacher, "lip-teacher", {"LipTeacher": _build_teacher}).requires_grad_(True)
    rows = np.concatenate([samples.rows_of_clip[c] for clips in samples.clips_of_speaker.values() for c in clips])
    return lip.start_teacher(samples.features[rows])


def _build_teacher(config: dict[str, Any]) -> LipTeacher:
    return LipTeacher(checkpoint.config_from_dict(LipTeacherConfig, config))


def _expressions(store: CropStore, features: dict[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Expression features (N, E) of a store's frames, from each clip's (see :func:`lip.speaker_features`)."""
    return np.stack([features[str(store.clip_ids[c])][0][f] for c, f in zip(store.clip_of, store.frame_of, strict=True)])


def _save(run: Run[P], network: nn.Module, role: str, judge: PaperJudge) -> Path:
    return run.save(network, role, crop_px=run.settings.crop_px, judged_by=judge.names())
