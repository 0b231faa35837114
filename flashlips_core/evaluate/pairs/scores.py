"""All numbers of one generated video: :func:`scored`. T frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from ... import measures as m
from ...audio import to_mono_16k
from ...codec import Codec
from ...drawings.sheets import contact_sheet
from ...face.crop import smooth_boxes
from ...face.motion import FaceMotion, motion_from_faces
from ...face.points import OVAL, in_mesh
from ...media import has_picture, open_sound, probe, sound_rate
from ...pretrained import load_identity
from ...types import SAMPLE_RATE, FlashLipsError, Waiting
from ..networks.lpips import load_lpips
from ..networks.syncnet import FPS, SIZE_PX, SyncNet, load_syncnet, sync_of
from ..videos import measures as vm
from .listing import Pair
from .matching import LEAST_FRAMES, Matching, Witness, by_time, match, paired_frames, readable_frames, rows_of
from .pictures import Crops, identity, likeness, squeezed

MAX_LAG, LAG_SHARE = 10, 4  # frames either way, and at most this part of the clip: few frames always fit somewhere
SYNC_MARGIN = 0.4  # SyncNet's crop scale
SHEET_PX = 150  # smaller mouths are shown larger on contact sheets, by whole pixels
ASKED = ".opening.npy"  # beside a generated video: the mouth opening asked of each frame, over the distance of the irises
Numbers = dict[str, float | None]


@dataclass(frozen=True)
class Judges:
    """Networks that are there, and why others are not."""

    lpips: nn.Module | None = None
    identity: nn.Module | None = None
    syncnet: SyncNet | None = None
    missing: dict[str, str] = field(default_factory=dict)  # by the name above

    @classmethod
    def load(cls, weights: Path | None) -> Judges:
        """What a folder has files for."""
        found, missing = {}, {}
        for name, load in (("lpips", load_lpips), ("identity", _load_identity), ("syncnet", load_syncnet)):
            try:
                found[name] = load(weights)
            except FlashLipsError as error:
                missing[name] = str(error)
        return cls(**found, missing=missing)


def _load_identity(weights: Path | None) -> nn.Module:
    wanted = "*vggface2*.pt (facenet-pytorch's) or face_recognition_model-weights_manifest.json with its .bin (face-api's dlib)"
    if weights is None:
        raise FlashLipsError(f"put {wanted} in a folder and name it with --weights")
    try:
        return load_identity(weights)
    except FlashLipsError as error:
        raise FlashLipsError(f"put {wanted} in {weights}" if str(error).startswith("No ") else str(error)) from error


@dataclass(frozen=True)
class Score:
    """One pair, measured."""

    pair: Pair
    numbers: Numbers
    notes: list[str]  # what was aligned, and what could not be measured
    curves: dict[str, list[float | None]]  # lip gaps: "generated", and "wanted" where it is known
    fps: float
    sheet: Path | None = None

    def as_dict(self) -> dict:
        """For JSON."""
        files = {name: str(path) for name in ("generated", "source", "sound") if (path := getattr(self.pair, name)) is not None}
        sheet = None if self.sheet is None else self.sheet.name
        return {"name": self.pair.name, **files, **self.numbers, "notes": self.notes, "fps": self.fps, "sheet": sheet} | {
            "curves": self.curves
        }


def scored(
    pair: Pair,
    witness: Witness,
    judges: Judges,
    codec: Codec,
    sheet: Path | None = None,
    frames: int | None = None,
    waiting: Waiting | None = None,
) -> Score:
    """Measure one output.

    Args:
        codec: whose round trip is the ceiling.
        sheet: where a contact sheet of both mouths is written.
        frames: the first so many only; None for all that both videos have.
        waiting: called for each frame that is looked at, three times for each that both videos have.
    Raises:
        FlashLipsError: the files cannot be read, share too few frames, or show no face.
    """
    matching = match(probe(pair.generated), probe(pair.source), frames)
    motions = _seen(pair, witness, matching, waiting)
    notes = list(matching.notes)
    wanted = _wanted(pair, witness, matching, motions[0], notes, waiting)
    numbers: Numbers = {"frames": float(len(matching)), "lost": float((motions[0].found & ~motions[1].found).sum())}
    numbers |= _lips(motions[1], wanted) | _asked(pair, motions[1])
    numbers |= _sync(pair, motions[1], matching, judges.syncnet, notes) if judges.syncnet is not None else {}
    shown = None
    if matching.size is not None:
        views = None if sheet is None else vm.mouth_views(motions[0], motions[1].lip_gap)
        numbers |= _pictures(pair, matching, motions, judges, codec, views, waiting)
        shown = sheet if views is not None and _draw(views, sheet) else None
    if not pair.is_reconstruction:
        notes.append("another sound than the source's drove it: the mouth's pixels are not compared with the source's")
    curves = {"generated": _listed(motions[1].lip_gap)} | ({} if wanted is None else {"wanted": _listed(wanted)})
    return Score(pair, numbers, notes, curves, matching.fps, shown)


def _seen(pair: Pair, witness: Witness, matching: Matching, waiting: Waiting | None) -> tuple[FaceMotion, FaceMotion]:
    """The source's face, row by row of the matching, and the generated one."""
    source = witness.see(pair.source, int(matching.rows[-1]) + 1, waiting)
    generated = witness.see(pair.generated, len(matching), waiting)
    motions = rows_of(source, matching.rows), rows_of(generated, range(len(matching)))
    for path, motion in zip((pair.source, pair.generated), motions, strict=True):
        if motion.found.sum() < LEAST_FRAMES:
            raise FlashLipsError(f"{witness.name} finds no face in {path.name}; leave it out, or look at it.")
    if (motions[0].found & motions[1].found).sum() < LEAST_FRAMES:
        raise FlashLipsError(f"{pair.generated.name} and {pair.source.name} hardly show a face at the same time; check the pair.")
    return motions


def _wanted(
    pair: Pair, witness: Witness, matching: Matching, source: FaceMotion, notes: list[str], waiting: Waiting | None
) -> np.ndarray | None:
    """(T,) lip gap of the face whose voice is spoken; None where nobody shows it, which the notes say."""
    if pair.is_reconstruction:
        return source.lip_gap
    if pair.sound is None or not has_picture(pair.sound):
        what = "the new sound" if pair.sound is None else pair.sound.name
        notes.append(f"{what} has no picture: nobody shows what the lips should do, so they are not compared")
        return None
    clip = probe(pair.sound)
    motion = witness.see(pair.sound, clip.num_frames, waiting)
    if motion.found.sum() < LEAST_FRAMES:
        notes.append(f"{pair.sound.name} shows no face, so the lips are not compared")
        return None
    return by_time(motion.lip_gap, float(clip.fps), matching)


def _lips(generated: FaceMotion, wanted: np.ndarray | None) -> Numbers:
    """Correlation of two lip gaps frame by frame, at the best lag and that lag; how far lips move beside what they should."""
    if wanted is None:
        return {}
    best, lag = m.best_correlation(generated.lip_gap, wanted, min(MAX_LAG, len(wanted) // LAG_SHARE))
    return {
        "lips_r": m.correlation(generated.lip_gap, wanted),
        "lips_best_r": best,
        "lips_lag": float(lag),
        "lips_size": m.motion_share(generated.lip_gap, wanted),
    }


def _sync(pair: Pair, face: FaceMotion, matching: Matching, network: SyncNet, notes: list[str]) -> Numbers:
    """LSE-D, LSE-C and offset, by the sound of the generated video, else by the one that drove it."""
    files = [path for path in (pair.generated, pair.sound, pair.source) if path is not None and _has_sound(path)]
    if not files:
        notes.append("there is no sound to hear, so SyncNet is not asked; give it in the column sound")
        return {}
    length = round(len(matching) / matching.fps * SAMPLE_RATE)
    samples = to_mono_16k(open_sound(files[0]))[:length].numpy()
    try:
        found = sync_of(network, _sync_crops(pair.generated, face, matching), samples)
    except FlashLipsError as error:
        notes.append(str(error))
        return {}
    return {"lse_d": found.distance, "lse_c": found.confidence, "sync_offset": float(found.offset)}


def _has_sound(path: Path) -> bool:
    try:
        return sound_rate(path) > 0
    except FlashLipsError:
        return False


def _sync_crops(path: Path, face: FaceMotion, matching: Matching) -> Iterator[np.ndarray]:
    """The face at 25 frames per second, cut as SyncNet's pipeline cuts around a detector's box: 1.4 times its half side to the
    left and right, once above and 1.8 times below its middle."""
    outline = face.landmarks[:, list(in_mesh(OVAL))]
    boxes = np.concatenate([outline.min(1), outline.max(1)], 1)
    half = (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True) / 2
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    reach = 1 + SYNC_MARGIN
    squares = np.concatenate([centre - half * [[reach, 1]], centre + half * [[reach, 1 + 2 * SYNC_MARGIN]]], 1)
    squares = smooth_boxes(squares.astype(np.float32), face.found, matching.fps)
    rows = iter(np.floor((np.arange(round(len(matching) / matching.fps * FPS)) + 0.5) * matching.fps / FPS).astype(int).tolist())
    wanted = next(rows, None)
    for index, frame in enumerate(readable_frames(path)):
        while wanted == index:
            yield squeezed(frame, squares[index], SIZE_PX)
            wanted = next(rows, None)
        if wanted is None or index + 1 >= len(matching):
            return


def _asked(pair: Pair, generated: FaceMotion) -> Numbers:
    """How well the lips do what a pose model asked, where its curve lies beside the video."""
    path = pair.asked or pair.generated.with_suffix(ASKED)
    found = vm.lip_numbers(generated, np.load(path)) if path.is_file() else {}
    return {f"asked_{name}": found[name] for name in ("r", "size") if found.get(name) is not None}


def _pictures(
    pair: Pair,
    matching: Matching,
    motions: tuple[FaceMotion, FaceMotion],
    judges: Judges,
    codec: Codec,
    views: vm.Views | None,
    waiting: Waiting | None,
) -> Numbers:
    scale = probe(pair.source).width / probe(pair.generated).width
    motions = motions[0], _enlarged(motions[1], scale)
    crops = Crops(motions, matching.fps)
    watchers = [crops, *filter(None, [views])]
    found = vm.picture_numbers(paired_frames(pair.generated, pair.source, matching, waiting), motions, *watchers)
    numbers: Numbers = {name: found[key] for name, key in PICTURE_NUMBERS.items()} | {"jitter": crops.jitter}
    numbers |= likeness(crops, codec, judges.lpips, pair.is_reconstruction)
    if judges.identity is not None:
        numbers["identity"] = identity(crops, judges.identity)
    return numbers


PICTURE_NUMBERS = {
    "sharpness": "detail", "sharpness_true": "detail_true", "finest": "finest", "chin": "chin", "flicker": "unrest",
    "colour": "colour",
}  # fmt: skip


def _enlarged(motion: FaceMotion, scale: float) -> FaceMotion:
    """The same face in a picture of another size."""
    if scale == 1:
        return motion
    faces = zip(motion.landmarks * np.float32(scale), motion.blendshapes, motion.found, strict=True)
    return motion_from_faces([(points, shapes) if is_found else None for points, shapes, is_found in faces])


def _draw(views: vm.Views, path: Path) -> bool:
    if not views.found:
        return False
    width = next(iter(views.found.values()))[0].shape[1]
    rows = {label.replace("dub", "generated"): row for label, row in views.rows().items()}
    contact_sheet(rows, path, max(1, round(SHEET_PX / width)))
    return True


def _listed(curve: np.ndarray) -> list[float | None]:
    return [round(float(value), 4) if np.isfinite(value) else None for value in curve]
