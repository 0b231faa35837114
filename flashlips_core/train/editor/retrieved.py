"""Stage "retrieved": the editor learns on frames with a mouth of their clip laid over them (``retrieved_pairs``).

B batch, h w latent cells, H W the pixel window. Half of the batches are starts, half plain frames with quite another mouth, so
that what the editor could do stays. It is judged by the picture that a dub shows: what the codec cannot draw stays where an edit
changes little (``composed``), and it is asked to change no more than it must.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...codec import CELL_PX, Codec
from ...models.lip_encoder import LipEncoder
from ...models.masks import mouth_mask
from ...types import Progress
from ..batches.frames import lip_weights, near_lips, window_cells
from ..loop.trainer import SHEET_BATCH, MakeBatch, Step, TrainConfig, Validate, fit, step_generator
from .losses import PerceptualLoss, sharpness_loss, texture_loss
from .pairs import LIPS_SHARE, EditorBatch, Judge, edit_sheet, editor_batches, mouths_of, pair_target, without_edge
from .starts import ALIKE_SHARE, RetrievedFrames, retrieved_batches

REDRAWN = (0.25, 0.8)  # mean |change| of a latent from which an edit begins to replace what was there, and does so fully
WEIGHTS = {
    "latent": 1.0, "needless": 1.0, "pixel": 3.0, "lips": 5.0, "sharpness": 12.0, "texture": 150.0, "drawn": 2.0,
    "readback": 0.3, "perceptual": 0.2,
}  # fmt: skip
DECODED_EVERY = 3  # of a batch one in so many is decoded, which costs more than its edit
RETRIEVED_SHARE = 0.6  # of the batches, the rest are frames with another mouth, as before


def mixed_batches(first: MakeBatch, second: MakeBatch, share: float) -> MakeBatch:
    """Batches of either: ``share`` of them are of the first kind."""

    def make(generator: torch.Generator) -> EditorBatch:
        is_first = float(torch.rand((), generator=generator)) < share
        return (first if is_first else second)(generator)

    return make


def redrawn_share(before: Tensor, after: Tensor) -> Tensor:
    """Where an edit changes too much for what was there to shine through, (B, 4, h, w) twice -> (B, 1, h, w) in [0, 1]."""
    change = (after - before).abs().mean(1, keepdim=True)
    low, high = REDRAWN
    ramp = ((F.avg_pool2d(change, 3, stride=1, padding=1, count_include_pad=False) - low) / (high - low)).clamp(0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def composed(start: Tensor, shown: Tensor, drawn: Tensor, share: Tensor) -> Tensor:
    """The picture of a dub: the start and the difference of two decodes, or what is drawn alone where ``share`` is 1.

    Args:
        start: (B, 3, H, W) pixels that the edit started from.
        shown: what the codec makes of them.
        drawn: what it makes of the edit.
        share: (B, 1, H / 8, W / 8) in [0, 1].
    """
    return torch.lerp(start + drawn - shown, drawn, F.interpolate(share, size=drawn.shape[2:], mode="bilinear"))


def retrieved_step(judge: Judge) -> Step:
    """Edits of starts towards their frames, judged as a dub shows them."""

    def step(network: nn.Module, batch: EditorBatch, generator: torch.Generator) -> dict[str, Tensor]:
        mask, cells = mouth_mask(*batch.z_src.shape[2:]), batch.z_src.shape[-1]
        context = network.prepare_references(batch.references, batch.reference_poses)
        z_hat = torch.lerp(batch.z_near, network(batch.z_near, context, batch.pose), mask)
        z_target, target = pair_target(batch, mask)
        weight = mask * ((1 - LIPS_SHARE) + LIPS_SHARE * near_lips(batch.lips, cells) * 4)
        kept = mask * (1 - ((z_target - batch.z_near).abs().mean(1, keepdim=True) / REDRAWN[0]).clamp(0, 1))
        losses = {
            "latent": ((z_hat - z_target).abs() * weight).sum() / (weight.sum() * z_hat.shape[1]),
            "needless": ((z_hat - batch.z_near).abs() * kept).sum() / (kept.sum() * z_hat.shape[1] + 1),
        }
        rows = slice(None, None, DECODED_EVERY)
        return losses | _picture_losses(judge, z_hat[rows], batch, target, rows)

    return step


def _picture_losses(judge: Judge, z_hat: Tensor, batch: EditorBatch, target: Tensor, rows: slice) -> dict[str, Tensor]:
    cells, start, target = z_hat.shape[-1], batch.near_pixels[rows], target[rows]
    with torch.no_grad():
        shown = judge.codec.decode(window_cells(batch.z_near[rows]))
        share = window_cells(redrawn_share(batch.z_near[rows], z_hat.detach()))
    drawn = judge.codec.decode(window_cells(z_hat))
    picture = composed(start, shown, drawn, share)
    inside = F.interpolate(window_cells(mouth_mask(cells, cells)), scale_factor=CELL_PX, mode="bilinear")
    lips = without_edge(lip_weights(batch.lips[rows], cells) * inside)
    difference = without_edge((picture - target) * inside)
    losses = {
        "pixel": difference.abs().sum() / (3 * without_edge(inside).sum() * len(z_hat)),
        "lips": (difference.abs() * lips).sum() / (3 * lips.sum() + 1),
        "sharpness": sharpness_loss(difference, torch.zeros_like(difference)),
        "texture": texture_loss(without_edge(picture), without_edge(target)),
        "drawn": (without_edge((drawn - target) * inside)).abs().sum() / (3 * without_edge(inside).sum() * len(z_hat)),
    }
    if judge.lip_encoder is not None:
        mouths = mouths_of(picture, cells, judge.lip_encoder.config.mouth_px)
        losses["readback"] = F.smooth_l1_loss(judge.lip_encoder.read_mouths(mouths), batch.pose[rows])
    if judge.perceptual is not None:
        losses["perceptual"] = judge.perceptual(picture[::2], target[::2])
    return losses


def train_retrieved(
    editor: nn.Module,
    retrieved: RetrievedFrames,
    codec: Codec,
    run_dir: str,
    lip_encoder: LipEncoder | None = None,
    perceptual: PerceptualLoss | None = None,
    steps: int = 1500,
    batch_size: int = 8,
    seed: int = 4,
    lr: float = 2e-4,
    ema: float = 0.995,
    references: int = 8,
    alike: float = ALIKE_SHARE,
    share: float = RETRIEVED_SHARE,
    readback: float = WEIGHTS["readback"],
    texture: float = WEIGHTS["texture"],
    validate: Validate | None = None,
    progress: Progress | None = None,
    **loop: object,
) -> nn.Module:
    """Go on training a copy of ``editor``; ``loop`` are further settings of TrainConfig.

    Args:
        references: how many a batch has, four times out of five.
        alike: share of the starts that are the frame itself.
        share: of the batches that begin with a retrieved start.
        readback: weight of the lip encoder's verdict; more moves the lips further.
        texture: weight of the amount of fine detail.
    """
    network = copy.deepcopy(editor).requires_grad_(True).to(memory_format=torch.channels_last)
    judge = Judge(codec, lip_encoder, perceptual)
    settings = TrainConfig(
        run_dir, steps, lr=lr, seed=seed, weights=WEIGHTS | {"readback": readback, "texture": texture}, ema=ema, **loop
    )
    laid = retrieved_batches(retrieved, batch_size, references, alike)
    batches = mixed_batches(laid, editor_batches(retrieved.frames, batch_size, references, alike), share)
    sheet = edit_sheet(laid(step_generator(seed, SHEET_BATCH)), codec)
    return fit(network, batches, retrieved_step(judge), settings, validate, progress, sheet)
