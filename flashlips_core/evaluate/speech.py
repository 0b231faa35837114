"""Rows that need to know when which sound is spoken: lip closures, and voices that the model never heard."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .. import measures as m
from ..audio import LogMelEncoder, to_mono_16k
from ..measures import Bounds, Measure
from ..media import open_sound
from ..types import FlashLipsError
from .phonemes import Aligner, Phone, closure_spans, expected_opening, read_phones, read_words, speech_span
from .session import Dub, Session

log = logging.getLogger(__name__)


def spoken_phones(drivers: Sequence[Path], words: Path) -> dict[Path, list[Phone]]:
    """The phones of GRID clips by forced alignment, from the words in ``words/<clip>.align``; clips that fail are left out.

    Raises:
        FlashLipsError: pocketsphinx is not installed, or none of the clips has its words there.
    """
    aligner = Aligner()
    found = {}
    for driver in dict.fromkeys(drivers):
        timed = words / f"{driver.stem}.align"
        if not timed.is_file():
            continue
        try:
            found[driver] = aligner.phones(to_mono_16k(open_sound(driver)).numpy(), read_words(timed))
        except FlashLipsError as error:
            log.warning("%s does not count towards lip closures: %s", driver.name, error)
    if not found:
        raise FlashLipsError(f"no words/<clip>.align of these clips could be used in {words}")
    return found


def closure_rows(
    session: Session, dubs: Sequence[Dub], phones: dict[Path, list[Phone]], who: str, bounds: Bounds
) -> list[Measure]:
    """In how many of the p, b and m that are heard the lips close, beside chance and the driving clips' own pictures."""
    name = f"lip closures: share of p, b, m, {who}"
    dubs = [dub for dub in dubs if dub.driver in phones]
    sounds = 0
    counts: dict[str, np.ndarray] = {}  # of which curve, by whose scale: closed at the sounds, and by chance
    for dub in dubs:
        output, driver, source = (session.motion(path).lip_gap for path in (dub.output, dub.driver, dub.clip))
        said, length, fps = phones[dub.driver], min(map(len, (output, driver, source))), float(session.track(dub.clip).fps)
        spans, speech = closure_spans(said, length, fps), speech_span(said, length, fps)
        sounds += len(spans)
        curves = {
            "output": (output, source),
            "own range": (output, output),
            "driver": (driver, driver),
            "source": (source, source),
        }
        for which, (gap, scale) in curves.items():
            closed = m.closed_frames(gap[:length], scale)
            found = np.array([m.closures(closed, spans), m.closures_by_chance(closed, spans, speech)])
            counts[which] = counts.get(which, np.zeros(2)) + found
    if not sounds:
        return [m.not_measured(name, "none of the driving clips says one at a known time")]
    (made, chance), (small, small_chance), (driven, driven_chance), (undubbed, _) = (counts[which] / sounds for which in curves)
    note = (
        f"sounds in {len(dubs)} clips, lips closed within 1 frame; by chance (motion shifted in time) {chance:.2f}; by the "
        f"output's own range, where lips that hardly open are not closed, {small:.2f}, by chance {small_chance:.2f}; "
        f"the driving clips' own pictures {driven:.2f}, by chance {driven_chance:.2f}; the undubbed source {undubbed:.2f}"
    )
    return [m.within(name, float(made), bounds, sounds, note)]


def own_opening_row(session: Session, phones: dict[Path, list[Phone]]) -> Measure:
    """What the expected opening can be expected to score: real lips against the phones that they speak."""
    scores = [
        m.correlation(motion.jaw_open, expected_opening(said, len(motion), float(session.track(clip).fps)))
        for clip, said in phones.items()
        for motion in [session.motion(clip)]
    ]
    note = "the driving clips' own pictures, for comparison with unheard voices; mean over clips at lag 0"
    return m.shown("jaw against the phones' expected opening: real speakers", float(np.mean(scores)), len(scores), note)


def read_speech(folder: Path) -> dict[Path, list[Phone]]:
    """Each NAME.wav of a folder with the phones in its NAME.json."""
    found = {
        path: read_phones(path.with_suffix(".json"))
        for path in sorted(folder.glob("*.wav"))
        if path.with_suffix(".json").is_file()
    }
    if not found:
        raise FlashLipsError(f"Found no NAME.wav with NAME.json in {folder}; 'python tests/make_speech.py {folder}' makes some.")
    return found


def log_mel_energy(path: Path, num_frames: int, fps: float) -> np.ndarray:
    """The mean of the log-mel spectrum at the middle of each video frame, (T,)."""
    features = LogMelEncoder().encode(to_mono_16k(open_sound(path)))
    rows_s = (np.arange(len(features)) + 0.5) / float(features.rate_hz)
    return np.interp((np.arange(num_frames) + 0.5) / fps, rows_s, features.values.mean(1).numpy())


def unheard_rows(
    session: Session, dubs: Sequence[Dub], phones: dict[Path, list[Phone]], who: str, bounds: Bounds
) -> list[Measure]:
    """Correlation of the output's jaw with the opening that the phones of a synthetic voice make one expect."""
    name = f"jaw against the phones' expected opening: synthetic voices, {who}"
    if not dubs:
        return [m.not_measured(name, "no clips found")]
    zero, best, lags, gaps, energies, undubbed = [], [], [], [], [], []
    for dub in dubs:
        output, source, fps = session.motion(dub.output), session.motion(dub.clip), float(session.track(dub.clip).fps)
        expected = expected_opening(phones[dub.driver], len(output), fps)
        zero.append(m.correlation(output.jaw_open, expected))
        score, lag = m.best_correlation(output.jaw_open, expected)
        best.append(score)
        lags.append(lag)
        gaps.append(m.correlation(output.lip_gap, expected))
        energies.append(m.correlation(log_mel_energy(dub.driver, len(output), fps), expected))
        undubbed.append(m.correlation(source.jaw_open, expected))
    note = (
        f"mean over dubs at lag 0 (lowest {min(zero):.2f}); at each dub's best lag {np.mean(best):.2f}, median lag "
        f"{np.median(lags):+.0f} frames; inner-lip gap {np.mean(gaps):.2f}; log-mel energy alone {np.mean(energies):.2f}; "
        f"the undubbed source {np.mean(undubbed):.2f}"
    )
    return [m.within(name, float(np.mean(zero)), bounds, len(dubs), note)]
