"""What each of the 12 pose numbers does on screen, by the bundled editor on the bundled clip. By hand, after a retraining:

    python tests/measure_pose_numbers.py

Frames of the clip are edited with one number moved up and down, and with poses of other frames; the decoded crops are read by the
bundled landmark network and lip encoder. Prints what the numbers do, and the tables of flashlips_core/poses/shapes.py. Minutes on
a CPU. Printed for the bundled models, a step of 1 in hundredths of the distance of the irises:

    number  opening (encoder)  opening  width  thickness  corners up  sideways  upper lip up  lower lip down
         0               +2.9     +0.2   -0.2       +0.2        -1.0      +0.1          -0.8            +1.2
         1               -0.4     -0.5   -1.4       +0.3        -0.7      +0.2          -0.3            +0.1
         2               -2.9     -0.5   -0.3       -0.0        +0.1      +0.1          -0.3            -0.2
         3               -0.5     -0.7   -1.9       +0.4        -1.1      +0.3          -0.6            +0.3
         4               -0.6     -0.4   -0.7       +0.1        -0.4      +0.2          -0.2            -0.0
         5               +1.1     -0.1   -0.6       +0.2        -0.4      +0.0          -0.2            +0.3
         6               -0.0     -0.0   -0.0       +0.1        -0.2      +0.0          -0.2            +0.3
         7               -0.2     -0.3   -0.7       +0.1        -0.3      +0.2          -0.0            -0.1
         8               -0.1     +0.6   +1.3       -0.3        +0.7      -0.3          +0.4            -0.2
         9               -1.2     +0.0   -0.1       -0.1        +0.4      -0.1          +0.5            -0.5
        10               -0.2     +0.2   +0.7       -0.2        +0.4      -0.2          +0.2            -0.2
        11               -2.5     -0.2   +1.6       -0.5        +1.4      -0.1          +0.5            -1.2
    linear                86%      48%    52%        62%         65%       23%           65%             73%

("linear" is how much of what moved is a linear effect of the numbers; "opening (encoder)" is read again from the decoded crops.)
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from flashlips_core.compose import cut_batch  # noqa: E402
from flashlips_core.face.expression import normalised_lips  # noqa: E402
from flashlips_core.face.landmarks import FaceLandmarker, cut_from  # noqa: E402
from flashlips_core.face.readings import five_points  # noqa: E402
from flashlips_core.loading import load_network  # noqa: E402
from flashlips_core.media import read_frames  # noqa: E402
from flashlips_core.pipeline import LipSync  # noqa: E402
from flashlips_core.pixels import to_bytes  # noqa: E402
from flashlips_core.types import POSE_DIM  # noqa: E402

CLIP = ROOT / "flashlips_core" / "demo" / "face.mp4"
NUM_FRAMES, NUM_REFERENCES, NUM_OTHERS = 6, 8, 12
STEP = 1.5  # deviations that a number is moved by
OWN = 0.05  # added to each number's variance: a direction must not rest on a number that hardly moved in the clip
LEFT, RIGHT, OUTER_TOP, OUTER_BOTTOM, INNER_TOP, INNER_BOTTOM = 0, 10, 15, 5, 35, 25  # points of the lips


def main() -> None:
    lipsync, marker = LipSync(device="cpu"), FaceLandmarker(load_network("landmarks"))
    crops = clip_crops(lipsync)
    poses = lipsync.encode_lips(crops)
    rows = torch.linspace(4, len(crops) - 5, NUM_FRAMES).round().long()
    editor = lipsync.prepared(crops[torch.linspace(0, len(crops) - 1, NUM_REFERENCES).round().long()], sharpen=0)
    opening = lipsync.lip_encoder.opening
    eyes: list[np.ndarray] = []

    def seen(wanted: Tensor) -> np.ndarray:
        """What edits show, (NUM_FRAMES, K), in the frame of the eyes that the unmoved edit has."""
        edited, alpha = editor(crops[rows], wanted)
        edited = edited * alpha + crops[rows] * (1 - alpha)
        points = landmarks(marker, edited)
        eyes.append(five_points(points))
        read = readings(normalised_lips(points[:, :40], eyes[0]))
        return np.stack([opening(lipsync.encode_lips(edited)).numpy(), *read.values()], 1)

    before, own = poses[rows], seen(poses[rows])
    moves, effects = [], []
    for dim in range(POSE_DIM):
        for step in (-STEP, STEP):
            moves.append(step * torch.eye(POSE_DIM)[dim].expand_as(before))
            effects.append(seen(before + moves[-1]) - own)
        print(f"number {dim} is measured", flush=True)
    choose = torch.Generator().manual_seed(0)
    for _ in range(NUM_OTHERS):
        other = poses[torch.randint(len(poses), (NUM_FRAMES,), generator=choose)]
        moves.append(other - before)
        effects.append(seen(other) - own)
    move, effect = torch.cat(moves).numpy(), np.concatenate(effects)
    per_step, *_ = np.linalg.lstsq(move, effect, rcond=None)  # P K
    print(table(per_step, 1 - ((effect - move @ per_step) ** 2).sum(0) / (effect**2).sum(0)))
    rest = load_network("pose-model").rest_pose.float()
    resting = float(seen(rest.expand_as(before))[:, NAMES.index("width")].mean())
    width = per_step[:, NAMES.index("width")]
    weights = np.stack([lipsync.lip_encoder.opening_weight.numpy(), width]).round(4)
    print_shapes(weights, (float(lipsync.lip_encoder.opening_bias), resting - float(rest.numpy() @ weights[1])), poses.numpy())


NAMES = ("opening (encoder)", "opening", "width", "thickness", "corners up", "sideways", "upper lip up", "lower lip down")


def readings(points: np.ndarray) -> dict[str, np.ndarray]:
    """What lips (..., 40, 2) do, each (...)."""
    x, y = points[..., 0], points[..., 1]
    gap = y[..., INNER_BOTTOM] - y[..., INNER_TOP]
    found = (
        gap, x[..., RIGHT] - x[..., LEFT], y[..., OUTER_BOTTOM] - y[..., OUTER_TOP] - gap, -(y[..., LEFT] + y[..., RIGHT]) / 2,
        x.mean(-1), -y[..., OUTER_TOP], y[..., OUTER_BOTTOM],
    )  # fmt: skip
    return dict(zip(NAMES[1:], found, strict=True))


def table(per_step: np.ndarray, explained: np.ndarray) -> str:
    """What a step of 1 changes, (P, K), and how much of what moved is such an effect, (K,)."""
    rows = ["number  " + "  ".join(NAMES)]
    for dim, values in enumerate(per_step):
        rows.append(
            f"{dim:6}  " + "  ".join(f"{100 * value:+.1f}".rjust(len(name)) for name, value in zip(NAMES, values, strict=True))
        )
    shares = (f"{share:.0%}".rjust(len(name)) for name, share in zip(NAMES, explained, strict=True))
    return "\n".join([*rows, "linear  " + "  ".join(shares)])


def print_shapes(weights: np.ndarray, biases: tuple[float, float], poses: np.ndarray) -> None:
    """The lines of ``shapes._MEASURED``.

    A direction is the most likely change of a pose, were poses normal as in the clip, by which one reading changes by 1 and the
    other does not.
    """
    spread = np.cov(poses.T) + OWN * np.eye(POSE_DIM)
    directions = np.linalg.solve(weights @ spread @ weights.T, weights @ spread)
    for name, weight, bias, direction in zip(("opening", "width"), weights, biases, directions, strict=True):
        usual = float((poses @ weight).std())
        print(f'"{name}": ({weight.tolist()}, {bias:.4f}, {direction.round(4).tolist()}, {usual:.3f}),')


def clip_crops(lipsync: LipSync) -> Tensor:
    """Crops of the clip's face, (T, 3, S, S) in [-1, 1]."""
    track = lipsync.track(CLIP)
    frames = list(islice(read_frames(CLIP), len(track)))
    return cut_batch(frames, track.squares, lipsync.crop_px)


def landmarks(marker: FaceLandmarker, crops: Tensor) -> np.ndarray:
    """The landmarks of faces that fill their crops, (B, 99, 2) in pixels of the crops."""
    pictures = [to_bytes(crop) for crop in crops]
    size = crops.shape[-1]
    whole = np.tile(np.array([0, 0, size, size, 0], np.float32), (len(crops), 1))
    return marker.find(cut_from(pictures), whole, looks=3)[0]


if __name__ == "__main__":
    main()
