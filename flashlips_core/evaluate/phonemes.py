"""When which sound of a sentence is spoken, and what lips are expected to do then.

T frames. Phones are ARPAbet's, as pocketsphinx and the CMU dictionary write them; times are seconds from the sound's start.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..types import SAMPLE_RATE, FlashLipsError

BILABIALS = ("B", "M", "P")
SILENCES = ("SIL", "sil", "sp")
GRID_TICKS_PER_S = 25_000  # of the corpus's .align files
FRAMES_AROUND = 1  # by which a closure may miss its sound
# Deviation of the Gaussian that joins neighbouring sounds; of .03 to .08 chosen on the real videos of s1 test, whose jaw it then
# follows at .69 (.66 to .71 over that range), not on any dub
SMOOTHING_S = 0.05
FINE_STEPS = 20  # per video frame, in which the expected opening is computed
ALIGNED_HZ = 100  # pocketsphinx's frames
LISTEN_AROUND_S = 0.05  # before the first word and after the last

# Expected jaw opening, 0 shut to 1 as open as speech gets: by the height of vowels and the constriction of consonants, set by
# hand before anything was measured by it. Diphthongs have the opening of their wider half.
OPENING = {
    "SIL": 0.0, "M": 0.0, "B": 0.0, "P": 0.0,
    "AA": 1.0, "AE": 0.9, "AW": 0.9, "AY": 0.9, "AO": 0.8, "EH": 0.7, "OY": 0.7, "AH": 0.65, "OW": 0.6, "EY": 0.55,
    "ER": 0.4, "IH": 0.4, "UH": 0.4, "IY": 0.3, "UW": 0.25,
    "HH": 0.4, "L": 0.35, "K": 0.3, "G": 0.3, "NG": 0.3, "R": 0.25, "Y": 0.25, "N": 0.25, "T": 0.2, "D": 0.2, "TH": 0.2,
    "DH": 0.2, "W": 0.15, "SH": 0.15, "ZH": 0.15, "CH": 0.15, "JH": 0.15, "S": 0.1, "Z": 0.1, "F": 0.1, "V": 0.1,
}  # fmt: skip


class Phone(NamedTuple):
    """One sound."""

    name: str
    start_s: float
    end_s: float


class Word(NamedTuple):
    """One spoken word."""

    text: str
    start_s: float
    end_s: float


def read_words(path: Path) -> list[Word]:
    """The words of a GRID sentence from its .align file, without the silences around them."""
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        words = [Word(text, int(start) / GRID_TICKS_PER_S, int(end) / GRID_TICKS_PER_S) for start, end, text in rows]
    except (OSError, ValueError) as error:
        raise FlashLipsError(f"{path} cannot be read as GRID's word times ({error}); give another file.") from error
    return [word for word in words if word.text not in SILENCES]


def read_phones(path: Path) -> list[Phone]:
    """Phone times from a JSON file: a list of [ARPAbet, start, end], in seconds and in order."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        phones = [Phone(str(name).rstrip("012").upper(), float(start), float(end)) for name, start, end in rows]
    except (OSError, ValueError, TypeError) as error:
        message = f"{path} cannot be read as phone times ({error}); write [[ARPAbet, start s, end s], ...]."
        raise FlashLipsError(message) from error
    unknown = sorted({phone.name for phone in phones} - OPENING.keys())
    if unknown:
        raise FlashLipsError(f"{path.name} names phones that are not ARPAbet's: {', '.join(unknown)}; write e.g. B, AH.")
    return phones


def expected_opening(phones: Sequence[Phone], num_frames: int, fps: float) -> np.ndarray:
    """The jaw opening to be expected of these sounds, averaged over each video frame: (T,) in 0..1, shut where nothing is said.

    Each sound's opening lasts as long as the sound; a Gaussian joins neighbours, as lips do.
    """
    step_s = 1 / (fps * FINE_STEPS)
    fine = np.zeros(num_frames * FINE_STEPS)
    for phone in phones:
        fine[max(round(phone.start_s / step_s), 0) : max(round(phone.end_s / step_s), 0)] = OPENING[phone.name]
    reach = math.ceil(4 * SMOOTHING_S / step_s)
    kernel = np.exp(-((np.arange(-reach, reach + 1) * step_s / SMOOTHING_S) ** 2) / 2)
    smooth = np.convolve(np.pad(fine, reach), kernel / kernel.sum(), "valid")
    return smooth.reshape(num_frames, FINE_STEPS).mean(1)


def closure_spans(phones: Sequence[Phone], num_frames: int, fps: float) -> list[tuple[int, int]]:
    """First and end frame of each p, b and m that begins within the clip, with the frame on either side that may be missed by."""
    inside = [p for p in phones if p.name in BILABIALS and p.start_s * fps < num_frames]
    return [
        (
            max(math.floor(p.start_s * fps) - FRAMES_AROUND, 0),
            min(math.ceil(max(p.end_s, p.start_s + 1 / fps) * fps) + FRAMES_AROUND, num_frames),
        )
        for p in inside
    ]


def speech_span(phones: Sequence[Phone], num_frames: int, fps: float) -> tuple[int, int]:
    """First and end frame of what is said."""
    said = [phone for phone in phones if phone.name != "SIL"]
    if not said:
        return 0, 0
    return min(math.floor(said[0].start_s * fps), num_frames), min(math.ceil(said[-1].end_s * fps), num_frames)


class Aligner:
    """Finds the phones of a known sentence in its sound, by pocketsphinx and the English model in its package.

    Each phone is aligned as a word of its own, with the pronunciation that the dictionary gives first: pocketsphinx's own second
    pass from words to phones failed on 25 of s1's 50 test sentences. Thus nine words of ten begin within 60 ms of GRID's own
    times and one of twenty more than 120 ms off; that is why each phone is kept within its word.
    """

    def __init__(self) -> None:
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            message = "pocketsphinx is not installed, but finds when p, b and m are spoken; run: pip install pocketsphinx"
            raise FlashLipsError(message) from error
        # the search through its lattice, bestpath, leaves out last phones
        self._decoder: Any = Decoder(lm=None, loglevel="FATAL", bestpath=False)
        self._known: set[str] = set()

    def phones(self, samples: np.ndarray, words: Sequence[Word]) -> list[Phone]:
        """The phones of ``words`` in (N,) float samples at 16 kHz, each kept within its word's own times.

        Raises:
            FlashLipsError: A word is not in the dictionary, or the sound is not this sentence.
        """
        if not words:
            raise FlashLipsError("There are no words to find in this sound; give the sentence that is spoken.")
        said = [(word, phone) for word in words for phone in self._pronounced(word.text)]
        names = [phone for _, phone in said]
        for name in set(names) - self._known:
            self._decoder.add_word(f"_{name}", name, True)
            self._known.add(name)
        # without the breath before and after, in which it likes to find the first and the last phone
        start_s = max(words[0].start_s - LISTEN_AROUND_S, 0.0)
        heard = samples[round(start_s * SAMPLE_RATE) : round((words[-1].end_s + LISTEN_AROUND_S) * SAMPLE_RATE)]
        pcm = (np.clip(heard, -1, 1) * 32767).astype("<i2").tobytes()
        try:
            self._decoder.set_align_text(" ".join(f"_{name}" for name in names))
            self._decoder.start_utt()
            self._decoder.process_raw(pcm, full_utt=True)
            self._decoder.end_utt()
            found = [s for s in self._decoder.seg() if s.word.startswith("_")]
        except (RuntimeError, TypeError):  # TypeError: there are no segments at all
            found = []
        if [s.word for s in found] != [f"_{name}" for name in names]:
            sentence = " ".join(word.text for word in words)
            raise FlashLipsError(f"The sentence '{sentence}' was not found in its sound; give other words.")
        times = [(start_s + s.start_frame / ALIGNED_HZ, start_s + (s.end_frame + 1) / ALIGNED_HZ) for s in found]
        return [_within(word, name, *time) for (word, name), time in zip(said, times, strict=True)]

    def _pronounced(self, text: str) -> list[str]:
        if text == "a":  # in GRID always the letter
            return ["EY"]
        phones = self._decoder.lookup_word(text)
        if phones is None:
            raise FlashLipsError(f"'{text}' is not in pocketsphinx's dictionary; leave that clip out.")
        return phones.split()


def _within(word: Word, name: str, start_s: float, end_s: float) -> Phone:
    start_s = min(max(start_s, word.start_s), word.end_s)
    return Phone(name, start_s, max(min(end_s, word.end_s), start_s))
