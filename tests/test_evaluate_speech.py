"""Lip closures and expected openings: counted by hand on small curves, real alignment where its tools are at hand."""

from __future__ import annotations

import importlib.util
import json
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from flashlips_core import measures as m
from flashlips_core.audio import to_mono_16k
from flashlips_core.evaluate import material, phonemes, speech
from flashlips_core.evaluate.phonemes import Phone
from flashlips_core.evaluate.session import Dub
from flashlips_core.face.motion import motion_from_faces
from flashlips_core.media import open_sound
from flashlips_core.types import FlashLipsError

GRID = Path(__file__).resolve().parents[2] / "shared" / "data" / "grid_s1"
needs_alignment = pytest.mark.skipif(
    not (GRID.is_dir() and importlib.util.find_spec("pocketsphinx")), reason="pocketsphinx or GRID (../shared/data) is not here"
)
FPS = 25.0
SAID = [Phone("SIL", 0, 0.4), Phone("B", 0.4, 0.48), Phone("AA", 0.48, 0.8), Phone("M", 0.8, 0.88), Phone("SIL", 0.88, 1.2)]


# ---- phones ----------------------------------------------------------------------------------------------------------------


def test_the_jaw_is_expected_open_in_vowels_and_shut_where_lips_meet_or_nothing_is_said():
    curve = phonemes.expected_opening(SAID, 30, FPS)
    assert curve.shape == (30,) and curve[15] > 0.9 and curve[[0, 5, 28]].max() < 0.01
    assert curve[10] < 0.4 and curve[21] < 0.4  # B and M, blurred by the vowel next to them
    assert np.argmax(curve) in range(14, 18)


def test_a_long_sound_is_expected_as_open_as_its_table_says_at_any_frame_rate():
    for fps in (24.0, 25.0, 30000 / 1001):
        curve = phonemes.expected_opening([Phone("AE", 0, 2)], 40, fps)
        assert curve[15:25] == pytest.approx(phonemes.OPENING["AE"], abs=1e-6)


def test_closures_may_miss_their_sound_by_a_frame_and_sounds_beyond_the_clip_do_not_count():
    assert phonemes.closure_spans(SAID, 30, FPS) == [(9, 13), (19, 23)]
    assert phonemes.closure_spans(SAID, 21, FPS) == [(9, 13), (19, 21)]
    assert phonemes.closure_spans(SAID, 15, FPS) == [(9, 13)]
    assert phonemes.speech_span(SAID, 30, FPS) == (10, 22)
    assert phonemes.speech_span(SAID[:1], 30, FPS) == (0, 0)


def test_phone_files_are_read_with_or_without_stress_and_named_where_they_are_wrong(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([["b", 0, 0.1], ["AY1", 0.1, 0.3]]))
    assert phonemes.read_phones(path) == [Phone("B", 0, 0.1), Phone("AY", 0.1, 0.3)]
    path.write_text(json.dumps([["bh", 0, 0.1]]))
    with pytest.raises(FlashLipsError, match="a.json names phones that are not ARPAbet's: BH"):
        phonemes.read_phones(path)
    path.write_text("[[1]]")
    with pytest.raises(FlashLipsError, match="cannot be read as"):
        phonemes.read_phones(path)


def test_words_have_seconds_and_no_silence(tmp_path):
    path = tmp_path / "a.align"
    path.write_text("0 25000 sil\n25000 30000 bin\n30000 31000 sp\n31000 50000 blue\n")
    assert phonemes.read_words(path) == [("bin", 1.0, 1.2), ("blue", 1.24, 2.0)]
    path.write_text("0 x sil")
    with pytest.raises(FlashLipsError, match="word times"):
        phonemes.read_words(path)


def test_a_missing_aligner_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(FlashLipsError, match="pip install pocketsphinx"):
        phonemes.Aligner()


@needs_alignment
def test_a_real_sentence_is_aligned_within_its_words():
    clip = sorted((GRID / "test").glob("*.mp4"))[0]
    words = phonemes.read_words(GRID / "words" / f"{clip.stem}.align")
    phones = phonemes.Aligner().phones(to_mono_16k(open_sound(clip)).numpy(), words)
    assert [p.name for p in phones[:3]] == ["B", "IH", "N"]  # "bin"
    starts = [p.start_s for p in phones]
    assert starts == sorted(starts) and all(p.end_s >= p.start_s for p in phones)
    assert phones[0].start_s >= words[0].start_s and phones[-1].end_s <= words[-1].end_s
    with pytest.raises(FlashLipsError, match="not in pocketsphinx's dictionary"):
        phonemes.Aligner().phones(np.zeros(16_000), [phonemes.Word("xqzzt", 0, 1)])


# ---- closures --------------------------------------------------------------------------------------------------------------


def test_closed_is_judged_by_the_persons_own_scale():
    own = np.linspace(0.02, 0.22, 101)  # never quite shut, as MediaPipe sees some people
    assert m.closed_frames(np.array([0.02, 0.05, 0.07, np.nan]), own).tolist() == [True, True, False, False]
    assert not m.closed_frames(np.zeros(3), np.full(9, np.nan)).any()


def test_closures_are_counted_beside_what_chance_gives():
    closed = np.zeros(20, bool)
    closed[[5, 14]] = True
    spans = [(4, 7), (13, 16), (8, 11)]
    assert m.closures(closed, spans) == 2
    # ten frames of speech, the one closure in them meets the span of three frames in three of nine shifts that are not 0
    lone = np.zeros(20, bool)
    lone[5] = True
    assert m.closures_by_chance(lone, [(8, 11)], (2, 12)) == pytest.approx(3 / 9)
    assert m.closures_by_chance(lone, [(4, 7)], (2, 12)) == pytest.approx(2 / 9)


def test_lips_that_never_open_close_by_chance_as_often_as_in_fact():
    closed, spans = np.ones(30, bool), phonemes.closure_spans(SAID, 30, FPS)
    assert m.closures(closed, spans) == m.closures_by_chance(closed, spans, phonemes.speech_span(SAID, 30, FPS)) == 2


def test_two_limits_one_or_none_make_a_row():
    bounds = [(0.8, 1.2), (0.8, None), (None, 1.2), (None, None)]
    rows = [m.within("a", 1.3, each, 3) for each in bounds]
    assert [r.target for r in rows] == ["0.80 to 1.20", "at least 0.80", "at most 1.20", ""]
    assert [r.passed for r in rows] == [False, True, False, None]
    assert m.within("a", 0.8, (0.8, 1.2), 1).passed and m.within("a", None, (0.8, 1.2), 0).passed is None


# ---- rows ------------------------------------------------------------------------------------------------------------------


class Watched:
    """What rows ask of a session, with given mouth curves: gaps in thirtieths of the distance of the eyes."""

    def __init__(self, **gaps: np.ndarray) -> None:
        self.gaps = gaps

    def motion(self, path: Path):
        faces = []
        for gap in self.gaps[path.stem]:
            points = np.zeros((478, 2), np.float32)
            points[[87, 14, 317], 1] = gap
            points[263, 0], points[291, 0] = 30, 12
            shapes = np.zeros(52, np.float32)
            shapes[25] = gap
            faces.append((points, shapes))
        return motion_from_faces(faces)

    def track(self, path: Path):
        return type("Track", (), {"fps": FPS})


def test_a_dub_is_judged_by_its_drivers_sounds_and_its_sources_scale():
    opened = np.ones(30)
    good, late = opened.copy(), opened.copy()
    good[[11, 21]] = 0  # in B and M
    late[[11, 15]] = 0
    source = np.linspace(0, 1, 30)
    session = Watched(source=source, driver=good, output=late)
    dub = Dub(Path("source"), Path("driver"), Path("output"))
    [row] = speech.closure_rows(session, [dub], {Path("driver"): SAID}, "s1", (0.8, None))
    assert row.value == pytest.approx(0.5) and row.count == 2 and row.passed is False
    for words in ("hardly open are not closed, 0.50", "own pictures 1.00", "the undubbed source 0.00"):
        assert words in row.note
    [row] = speech.closure_rows(session, [dub], {}, "s1", (0.8, None))
    assert row.value is None


def spoken(folder: Path, phones: list) -> Path:
    """A wave file that is loud while a vowel sounds, and its phones."""
    samples = np.zeros(19_200, np.int16)
    for name, start, end in phones:
        loud = slice(round(start * 16_000), round(end * 16_000))
        samples[loud] = 9000 * phonemes.OPENING[name] * np.sin(np.arange(loud.stop - loud.start) / 5)
    path = folder / "voice.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", None))
        file.writeframes(samples.tobytes())
    path.with_suffix(".json").write_text(json.dumps(phones))
    return path


def test_a_mouth_that_follows_the_phones_scores_and_energy_stands_beside_it(tmp_path):
    voice = spoken(tmp_path, SAID)
    phones = speech.read_speech(tmp_path)
    assert phones == {voice: SAID}
    curve = phonemes.expected_opening(SAID, 30, FPS)
    session = Watched(source=np.ones(30), output=3 * curve + 0.1)
    [row] = speech.unheard_rows(session, [Dub(Path("source"), voice, Path("output"))], phones, "s1", (0.5, None))
    assert row.value == pytest.approx(1, abs=1e-4) and row.passed
    energy = m.correlation(speech.log_mel_energy(voice, 30, FPS), curve)
    assert 0.3 < energy < 0.99 and f"log-mel energy alone {energy:.2f}" in row.note
    with pytest.raises(FlashLipsError, match="make_speech"):
        speech.read_speech(tmp_path / "nowhere")


def test_every_target_set_is_at_least_as_strict_as_the_basic_one():
    basic, strict = (material.TARGETS[name] for name in ("basic", "strict"))
    for name, (low, high) in vars(basic).items():
        their_low, their_high = getattr(strict, name)
        assert low is None or their_low >= low, name
        assert name == "reconstruction" or high is None or their_high <= high, name
