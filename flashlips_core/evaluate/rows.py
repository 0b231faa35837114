"""The rows of the table: each is measured on dubs that are written already, or on crops of clips."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from .. import measures as m
from ..measures import Bounds, Measure
from ..types import FlashLipsError
from .fidelity import (
    SEEN_LEVELS,
    codec_comparison,
    codec_flops,
    identity_distances,
    outside_mouth,
    reconstruction,
    restored,
    untouched_frames,
)
from .session import Dub, Session


def sync_rows(session: Session, dubs: Sequence[Dub], name: str, bounds: Bounds) -> list[Measure]:
    """Correlation per frame, clip by clip, of the output's jaw with the driving clip's own."""
    if not dubs:
        return [m.not_measured(name, "no clips found")]
    zero, best, lags, gap, undubbed, shares = [], [], [], [], [], []
    for dub in dubs:
        output, driver, source = session.motion(dub.output), session.motion(dub.driver), session.motion(dub.clip)
        zero.append(m.correlation(output.jaw_open, driver.jaw_open))
        score, lag = m.best_correlation(output.jaw_open, driver.jaw_open)
        best.append(score)
        lags.append(lag)
        gap.append(m.correlation(output.lip_gap, driver.lip_gap))
        undubbed.append(m.correlation(source.jaw_open, driver.jaw_open))
        shares.append(m.motion_share(output.lip_gap, driver.lip_gap))
    note = (
        f"mean over clips at lag 0 (lowest {min(zero):.2f}); at each clip's best lag {np.mean(best):.2f}, "
        f"median lag {np.median(lags):+.0f} frames; inner-lip gap {np.mean(gap):.2f}; "
        f"the undubbed source scores {np.mean(undubbed):.2f}"
    )
    moved = m.shown(
        f"size of the motion, {name.partition(': ')[2]}", float(np.nanmean(shares)), len(dubs),
        "deviation of the inner-lip gap over the driving clip's own; 1 is as far",
    )  # fmt: skip
    return [m.within(name, float(np.mean(zero)), bounds, len(dubs), note), moved]


def silence_rows(session: Session, dubs: Sequence[Dub], bounds: Bounds) -> list[Measure]:
    """How far the mouth opens when nobody speaks."""
    name = "silent audio: jaw opening above rest, share of the source's"
    if not dubs:
        return [m.not_measured(name, "no clips found")]
    shares = [m.silence_share(session.motion(d.output).jaw_open, session.motion(d.clip).jaw_open) for d in dubs]
    leaks = [m.lip_leak(session.motion(d.output).mouth_aspect) for d in dubs]
    sources = [m.lip_leak(session.motion(d.clip).mouth_aspect) for d in dubs]
    return [
        m.within(name, float(np.mean(shares)), bounds, len(dubs), f"mean over clips, highest {max(shares):.2f}"),
        m.shown("silent audio: LipLeak", float(np.nanmean(leaks)), len(dubs), f"the talking sources: {np.nanmean(sources):.2f}"),
    ]


def identity_rows(session: Session, dubs: Sequence[Dub], weights: Path, frames: int) -> list[Measure]:
    """Face embedding distance of output to source on unseen people."""
    name = "face ID distance, output to source, unseen people"
    if not dubs:
        return [m.not_measured(name, "no clips found")]
    embed, missing = _identity(weights)
    if embed is None:
        return [m.not_measured(name, missing)]
    means = []
    for dub in dubs:
        outputs, sources = (session.faces(dub.clip, frames, path).crops for path in (dub.output, dub.clip))
        shared = min(len(outputs), len(sources))  # a voice that ends sooner makes a shorter dub
        means.append(float(identity_distances(embed, outputs[:shared], sources[:shared]).mean()))
    note = f"by {embed.name} on the editor's crops; mean over clips, highest {max(means):.2f}"
    return [m.at_most(name, float(np.mean(means)), 0.35, len(dubs), note)]


def _identity(weights: Path) -> tuple[nn.Module | None, str]:
    """The face embedding under ``weights``, or why there is none."""
    from ..pretrained import load_identity

    try:
        return load_identity(weights), ""
    except FlashLipsError as error:
        return None, str(error)


def detail_rows(session: Session, dubs: Sequence[Dub], frames: int, bounds: Bounds) -> list[Measure]:
    """How sharp the mouths of outputs are compared with the source's, on the written videos."""
    name = "mouth detail, output over source"
    if not dubs:
        return [m.not_measured(name, "no clips found")]
    ratios = []
    for dub in dubs:
        outputs, sources = (session.faces(dub.clip, frames, path) for path in (dub.output, dub.clip))
        made, real = (
            np.mean([m.detail(crop, box) for crop, box in zip(seen.crops, seen.mouth_boxes, strict=True)])
            for seen in (outputs, sources)
        )
        ratios.append(float(made / max(real, 1e-6)))
    note = f"variance of the Laplacian in the mouth box, mean over clips, lowest {min(ratios):.2f}, highest {max(ratios):.2f}"
    return [m.within(name, float(np.mean(ratios)), bounds, len(dubs), note)]


# Reconstruction with a frame's true pose: of that frame, as it is mostly reported, though the answer is in the input; and of one
# whose mouth was changed first
READINGS = {"same frame": "the frame itself", "changed mouth": "mouth changed first"}


def picture_rows(
    session: Session, groups: Mapping[str, tuple[Sequence[Path], Bounds]], frames: int, bounds: Bounds
) -> list[Measure]:
    """Reconstruction with true poses, and whether the pixels outside alpha are the source's own.

    Args:
        groups: clips by whose they are, and the bounds of what each group may lose to the codec's round trip.
        bounds: the same of all clips together.
    """
    scores = {who: _group_scores(session, clips, frames) for who, (clips, _) in groups.items() if clips}
    if not scores:
        return [m.not_measured("reconstruction", "no clips found")]
    everybody = _joined(scores.values())
    untouched = everybody.pop("untouched")
    total, num_clips = len(untouched), sum(len(clips) for clips, _ in groups.values())
    mean = {way: float(np.mean(values)) for way, values in everybody.items()}
    compared = [("", everybody, bounds), *((f", {who}", found, groups[who][1]) for who, found in scores.items())]
    where, name = f"of {num_clips} clips, crops before sharpening and video encoding", "mouth box PSNR, dB: "
    return [
        m.shown(name + "codec round trip", mean["codec"], total, where),
        m.shown(name + "another frame's mouth pasted", mean["pasted mouth"], total, where),
        m.shown(name + "true pose on the frame itself", mean["same frame"], total, f"{where}; the answer is in the input"),
        m.shown(name + "true pose on a frame whose mouth was changed first", mean["changed mouth"], total, where),
        *(row for way in READINGS for row in _below_codec(way, compared)),
        m.at_least(
            "reconstruction: dB above the pasted mouth", mean["changed mouth"] - mean["pasted mouth"], 2.5, total, "changed first"
        ),
        m.at_least(
            "frames identical to the source outside alpha, share", float(np.mean(untouched)), 1.0, total, "before encoding"
        ),
    ]


def restored_rows(session: Session, changer: Session, clips: Sequence[Path], weights: Path, frames: int) -> list[Measure]:
    """Likeness, identity and detail of mouths that ``changer`` changed and this editor restores, as pasted and sharpened."""
    name, (embed, missing) = "mouth changed and restored, as pasted: ", _identity(weights)
    likeness, sharp, true, apart = [], [], [], []
    for clip in clips:
        seen = session.faces(clip, frames)
        poses = session.lipsync.encode_lips(seen.crops)
        editors = (who.crop_editor(clip, who.settings.sharpen) for who in (changer, session))
        made = restored(*editors, seen, poses)
        for ours, real, box in zip(made, seen.crops, seen.mouth_boxes, strict=True):
            likeness.append(m.psnr(ours, real, box))
            sharp.append(m.detail(ours, box) / max(m.detail(real, box), 1e-6))
            true.append(m.true_detail(ours, real, box))
        if embed is not None:
            apart += identity_distances(embed, made, seen.crops).tolist()
    total, identity = len(likeness), name + "face ID distance"
    return [
        m.shown(name + "mouth box PSNR, dB", float(np.mean(likeness)), total, "towards the frame itself"),
        m.shown(identity, float(np.mean(apart)), total, f"by {embed.name}") if apart else m.not_measured(identity, missing),
        m.shown(name + "mouth detail over the frame's", float(np.mean(sharp)), total, "1 is as sharp, rightly or not"),
        m.shown(name + "mouth detail where the frame has it", float(np.mean(true)), total, "correlation of the Laplacians"),
    ]


def _below_codec(way: str, compared: Iterable[tuple[str, Mapping[str, list[float]], Bounds]]) -> Iterator[Measure]:
    """How far one way of reconstruction is from the codec's round trip, for each of (whose, scores, bounds)."""
    for whose, scores, bounds in compared:
        edited, codec = float(np.mean(scores[way])), float(np.mean(scores["codec"]))
        name = f"reconstruction, {READINGS[way]}: dB below the codec's round trip{whose}"
        yield m.within(name, codec - edited, bounds, len(scores[way]), f"{edited:.1f} dB, codec {codec:.1f} dB")


def _group_scores(session: Session, clips: Sequence[Path], frames: int) -> dict[str, list[float]]:
    """PSNR by way and frame, and for each frame whether it is untouched outside alpha (1 or 0)."""
    scores: dict[str, list[float]] = defaultdict(list)
    for clip in clips:
        seen = session.faces(clip, frames)
        poses = session.lipsync.encode_lips(seen.crops)
        editor = session.crop_editor(clip)
        for way, values in reconstruction(editor, seen, poses).items():
            scores[way] += values
        untouched = untouched_frames(editor, seen, poses.roll(len(poses) // 2, 0))
        scores["untouched"] += [1.0] * untouched + [0.0] * (len(seen) - untouched)
    return scores


def _joined(groups: Iterable[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    joined: dict[str, list[float]] = defaultdict(list)
    for scores in groups:
        for way, values in scores.items():
            joined[way] += values
    return joined


def outside_rows(session: Session, clips: Sequence[Path], frames: int) -> list[Measure]:
    """What the editor changes outside the mouth when it draws another pose."""
    found: dict[str, list[float]] = defaultdict(list)
    for clip in clips:
        seen = session.faces(clip, frames)
        poses = session.lipsync.encode_lips(seen.crops)
        for what, values in outside_mouth(session.crop_editor(clip), seen, poses.roll(len(poses) // 2, 0)).items():
            found[what] += values
    if not found:
        return [m.not_measured("outside the mouth", "no clips found")]
    texts = {
        "levels": ("mean change as pasted, of 255", "crops before video encoding, outside the box around the lips"),
        "share": ("share of pixels changed visibly", f"by more than {SEEN_LEVELS:g} of 255, as pasted"),
        "drawn": ("mean change before the blend, of 255", "to the codec's round trip of the same crop"),
    }
    return [
        m.shown(f"outside the mouth: {name}", float(np.mean(found[what])), len(found[what]), note)
        for what, (name, note) in texts.items()
    ]


def codec_rows(session: Session, clips: Sequence[Path], weights: Path, frames: int) -> list[Measure]:
    """The bundled codec beside TAESDXL."""
    from ..codec import load_codec

    if not list(weights.glob("taesdxl_encoder*")):
        return [m.not_measured("codec: PSNR inside the face against TAESDXL", "no taesdxl_encoder/decoder under --weights")]
    if not clips:
        return [m.not_measured("codec: PSNR inside the face against TAESDXL", "no clips found")]
    ours, theirs = session.lipsync.codec, load_codec(weights)
    seen = [session.faces(clip, frames) for clip in clips]
    total = sum(len(s) for s in seen)
    scores = codec_comparison(ours, theirs, seen)
    where = f"{session.lipsync.crop_px} px crops"
    rows = [m.shown(f"codec, face PSNR, dB: {pair}", value, total, where) for pair, value in scores.items()]
    own, reference = scores[f"{ours.name} > {ours.name}"], scores[f"{theirs.name} > {theirs.name}"]
    flops = codec_flops(ours)
    note = f"{flops / 1e9:.1f} GFLOP per 256 px picture, both ways"
    return [
        *rows,
        m.at_most(f"codec: dB below {theirs.name}", reference - own, 0.5, total, "inside the face"),
        m.at_most(f"codec: FLOPs, share of {theirs.name}'s", flops / codec_flops(theirs), 0.5, 1, note),
    ]
