"""Plans that fit a clip to its sound, and the streams that follow them."""

from __future__ import annotations

import weakref
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import NUM_FRAMES, same_frames, tone

from flashlips_core.media import fit, load_audio, plan_frames, probe, read_frames, read_planned, write_video
from flashlips_core.types import Audio, FlashLipsError


@pytest.mark.parametrize(
    ("mode", "sound_s", "wanted"),
    [
        ("auto", Fraction(2, 25), [0, 1]),
        ("auto", Fraction(21, 100), [0, 1, 2, 3]),  # what coded sound is padded with is no reason for another frame
        ("auto", Fraction(6, 25), [0, 1, 2, 3, 2, 1]),
        ("cut", Fraction(2, 25), [0, 1]),
        ("cut", Fraction(1), [0, 1, 2, 3]),
        ("silence", Fraction(2, 25), [0, 1, 2, 3]),
        ("silence", Fraction(1), [0, 1, 2, 3]),
        ("hold", Fraction(7, 25), [0, 1, 2, 3, 3, 3, 3]),
        ("hold", Fraction(2, 25), [0, 1, 2, 3]),
        ("loop", Fraction(10, 25), [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]),
        ("ping-pong", Fraction(10, 25), [0, 1, 2, 3, 2, 1, 0, 1, 2, 3]),
        ("ping-pong", Fraction(13, 50), [0, 1, 2, 3, 2, 1, 0]),  # a frame that has begun is shown
    ],
)
def test_a_plan_shows_the_expected_frames(mode, sound_s, wanted):
    assert plan_frames(4, Fraction(25), sound_s, mode).indices.tolist() == wanted


@pytest.mark.parametrize("mode", ["auto", "loop", "ping-pong", "hold"])
def test_a_single_picture_can_be_made_longer(mode):
    assert plan_frames(1, Fraction(25), Fraction(3, 25), mode).indices.tolist() == [0, 0, 0]


def test_impossible_plans_are_refused():
    with pytest.raises(FlashLipsError, match="length mode"):
        plan_frames(4, Fraction(25), Fraction(1), "bounce")
    with pytest.raises(FlashLipsError, match="more than zero"):
        plan_frames(4, Fraction(25), Fraction(0))


@pytest.mark.parametrize("mode", ["auto", "cut", "loop", "ping-pong", "hold", "silence"])
@pytest.mark.parametrize("piece_frames", [4, 250])
def test_a_planned_stream_shows_what_the_plan_says(plain_clip, monkeypatch, mode, piece_frames):
    monkeypatch.setattr(fit, "PIECE_FRAMES", piece_frames)
    source = list(read_frames(plain_clip))
    plan = plan_frames(len(source), Fraction(25), Fraction(3), mode)
    shown = list(read_planned(plain_clip, plan))
    assert same_frames(shown, [source[index] for index in plan.indices])
    assert [frame.pts for frame in shown] == [3600 * index for index in range(len(shown))]


@pytest.mark.parametrize("mode", ["loop", "ping-pong", "hold"])
def test_a_planned_stream_holds_only_a_few_frames(clip, monkeypatch, mode):
    monkeypatch.setattr(fit, "PIECE_FRAMES", 4)
    path = clip(pts=tuple(range(0, 100 * 3600, 3600)))
    alive: dict[int, weakref.ref] = {}
    most = 0
    for frame in read_planned(path, plan_frames(100, Fraction(25), Fraction(12), mode)):
        alive[id(frame.planes[0])] = weakref.ref(frame.planes[0])
        most = max(most, sum(ref() is not None for ref in alive.values()))
    assert most <= 4 + 3  # a backward piece, the frame shown, the one before it


def test_going_backwards_mirrors_uneven_timestamps(variable_rate_clip):
    source = [frame.pts for frame in read_frames(variable_rate_clip)]
    plan = plan_frames(len(source), Fraction(25), Fraction(17, 25), "ping-pong")
    shown = [frame.pts for frame in read_planned(variable_rate_clip, plan)]
    assert np.diff(shown).tolist() == np.diff(source).tolist() + np.diff(source).tolist()[::-1]


def test_held_frames_do_not_drift_when_a_tick_is_coarse(clip):
    path = clip(
        name="coarse.mkv", time_base=Fraction(1, 30), rate=Fraction(30), pts=tuple(range(NUM_FRAMES))
    )  # Matroska stores 33, 67, 100 ms
    info = probe(path)
    shown = list(read_planned(path, plan_frames(NUM_FRAMES, info.fps, Fraction(40), "hold")))
    assert shown[-1].pts * info.time_base == pytest.approx((len(shown) - 1) / info.fps, abs=0.01)


@pytest.mark.parametrize("mode", ["cut", "hold", "loop", "ping-pong"])
def test_a_clip_shorter_than_its_plan_still_gives_a_stream(plain_clip, mode, caplog):
    plan = plan_frames(NUM_FRAMES + 5, Fraction(25), Fraction(3), mode)
    shown = list(read_planned(plain_clip, plan))
    source = list(read_frames(plain_clip))
    wanted = np.minimum(plan.indices, NUM_FRAMES - 1)[: NUM_FRAMES if mode == "cut" else None]
    assert same_frames(shown, [source[index] for index in wanted])
    assert "were expected" in caplog.text


def test_a_planned_clip_can_be_written_with_its_longer_sound(plain_clip, tmp_path):
    audio = Audio(torch.from_numpy(tone(16_000, 1, Fraction(5, 2))), 16_000)
    plan = plan_frames(NUM_FRAMES, Fraction(25), audio.duration, "ping-pong")
    path = tmp_path / "out.mkv"
    write_video(path, read_planned(plain_clip, plan), probe(plain_clip), audio=audio)
    assert len(list(read_frames(path))) == len(plan) == 63
    assert load_audio(path).duration == Fraction(63, 25)
