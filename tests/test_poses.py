"""Pose edits: what stays, what moves, and where the mouth closes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from flashlips_core.poses import motion as p
from flashlips_core.poses.silence import silence_gate, speech_gate
from flashlips_core.types import AudioFeatures, FlashLipsError, LipPoses


def wave(frames: int, fps: Fraction = Fraction(25), hz: float = 2.0) -> LipPoses:
    """A slow sine in every pose number, each with its own phase; frame k at (k + 1/2) / fps."""
    time = (torch.arange(frames, dtype=torch.float64) + 0.5) / float(fps)
    return LipPoses(torch.sin(2 * torch.pi * hz * time[:, None] + torch.arange(12)).float(), fps)


def loudness(*pieces: tuple[float, float]) -> AudioFeatures:
    """Features whose level is a row of (seconds, dB) plateaus."""
    level = torch.cat([torch.full((round(seconds * 50),), db) for seconds, db in pieces])
    return AudioFeatures(torch.zeros(len(level), 4), Fraction(50), "log-mel", level)


@pytest.mark.parametrize("fps", [Fraction(30), Fraction(24000, 1001), Fraction(50), Fraction(12)])
def test_resampling_reproduces_a_slow_motion_at_any_rate(fps: Fraction) -> None:
    out = p.resample(wave(100), fps)
    assert out.fps == fps and len(out) == round(100 * fps / 25)
    truth = wave(len(out), fps).values
    assert (out.values - truth)[3:-3].abs().max() < 0.02


def test_resampling_to_the_same_rate_changes_nothing() -> None:
    poses = wave(30)
    assert p.resample(poses, Fraction(25)) is poses


def test_resampling_holds_the_last_pose_and_cuts() -> None:
    poses = wave(10)
    assert torch.equal(p.resample(poses, Fraction(25), 13).values, poses.values[[*range(10), 9, 9, 9]])
    assert torch.equal(p.resample(poses, Fraction(25), 4).values, poses.values[:4])


def test_poses_at_uneven_instants_match_the_even_ones() -> None:
    poses = wave(20)
    instants = (torch.tensor([0, 7, 13]) + 0.5) / 25
    assert torch.allclose(p.at_times(poses, instants), poses.values[[0, 7, 13]], atol=1e-6)


def test_shifting_by_whole_frames_moves_rows_and_holds_the_ends() -> None:
    poses = wave(10)
    assert torch.allclose(p.shift(poses, Fraction(2, 25)).values, poses.values[[0, 0, 0, 1, 2, 3, 4, 5, 6, 7]], atol=1e-6)
    assert torch.allclose(p.shift(poses, -0.04).values, poses.values[[*range(1, 10), 9]], atol=1e-5)


def test_gain_scales_each_group_around_rest() -> None:
    poses, rest = wave(5), torch.full((12,), 0.5)
    out = p.gain(poses, expression=2.0, mouth=0.0, rest=rest)
    assert torch.allclose(out.values[:, :8], 2 * poses.values[:, :8] - 0.5)
    assert torch.allclose(out.values[:, 8:], rest[8:].expand(5, 4))
    assert torch.equal(p.gain(poses).values, poses.values)


def test_smoothing_keeps_a_constant_and_calms_noise() -> None:
    still = LipPoses(torch.full((40, 12), 0.7), Fraction(25))
    assert torch.allclose(p.smooth(still, 0.1).values, still.values)
    noise = LipPoses(torch.randn(200, 12, generator=torch.Generator().manual_seed(0)), Fraction(25))
    assert p.smooth(noise, 0.08).values.std() < 0.6 * noise.values.std()
    assert p.smooth(noise, 0.0) is noise


def test_smoothing_is_the_same_at_the_ends_for_a_short_clip() -> None:
    assert p.smooth(wave(2), 1.0).values.isfinite().all()
    assert len(p.smooth(wave(1), 1.0)) == 1


def test_mixing_goes_from_one_to_the_other() -> None:
    a, b = wave(10), LipPoses(torch.zeros(10, 12), Fraction(25))
    assert torch.equal(p.mix(a, b, 0.0).values, a.values)
    assert torch.allclose(p.mix(a, b, 0.25).values, 0.75 * a.values)


def test_mixing_takes_masks_over_time_and_over_pose_numbers() -> None:
    a, b = wave(10), LipPoses(torch.zeros(10, 12), Fraction(25))
    over_time = torch.linspace(0, 1, 10)
    assert torch.allclose(p.mix(a, b, over_time).values, a.values * (1 - over_time)[:, None], atol=1e-6)
    over_numbers = torch.zeros(1, 12)
    over_numbers[0, 8:] = 1
    assert not p.mix(a, b, over_numbers).values[:, 8:].any()


def test_mixing_refuses_poses_of_other_lengths_rates_and_masks() -> None:
    with pytest.raises(FlashLipsError, match="resample one first"):
        p.mix(wave(10), wave(11), 0.5)
    with pytest.raises(FlashLipsError, match="mask has shape"):
        p.mix(wave(10), wave(10), torch.zeros(7))


def test_silence_closes_the_mouth_and_speech_leaves_it_alone() -> None:
    features = loudness((1.0, -70.0), (1.0, -20.0), (1.0, -70.0))
    poses, rest = wave(75), torch.full((12,), -3.0)
    out = silence_gate(poses, features, rest).values
    assert torch.allclose(out[26:50], poses.values[26:50], atol=1e-6)
    assert torch.allclose(out[:20], rest.expand(20, 12)) and torch.allclose(out[62:], rest.expand(13, 12))


def test_the_gate_opens_before_the_sound_and_closes_after_it() -> None:
    gate = speech_gate(loudness((1.0, -70.0), (1.0, -20.0), (1.0, -70.0)), attack_s=0.12, hold_s=0.1, release_s=0.2)
    assert 0 < gate[47] < 1 and gate[43] == 0
    assert gate[104] == 1 and 0 < gate[109] < 1 and gate[120] == 0


def test_a_short_closure_inside_speech_does_not_close_the_gate() -> None:
    gate = speech_gate(loudness((0.5, -20.0), (0.12, -80.0), (0.5, -20.0)))
    assert (gate == 1).all()


def test_hysteresis_ignores_levels_between_the_two_thresholds() -> None:
    settings = {"threshold_db": -30.0, "hysteresis_db": 6.0, "attack_s": 0.02, "hold_s": 0.0, "release_s": 0.02}
    fading = speech_gate(loudness((1.0, -10.0), (0.5, -38.0), (0.5, -60.0)), **settings)
    assert (fading[:75] == 1).all() and (fading[76:] == 0).all()
    rising = speech_gate(loudness((0.5, -60.0), (0.5, -38.0), (1.0, -10.0)), **settings)
    assert (rising[:49] == 0).all() and (rising[50:] == 1).all()


def test_the_gate_follows_the_clips_own_level() -> None:
    loud = loudness((1.0, -60.0), (1.0, -10.0))
    quiet = loudness((1.0, -85.0), (1.0, -35.0))
    assert torch.equal(speech_gate(loud), speech_gate(quiet))


def test_a_silent_clip_is_all_rest() -> None:
    rest = torch.linspace(-1, 1, 12)
    out = silence_gate(wave(25), loudness((1.0, -100.0)), rest)
    assert torch.allclose(out.values, rest.expand(25, 12))


def test_poses_that_outlast_the_sound_keep_its_last_gate() -> None:
    out = silence_gate(wave(50), loudness((1.0, -20.0)), torch.zeros(12))
    assert torch.allclose(out.values, wave(50).values)


def test_a_bad_rate_or_smoothing_is_refused() -> None:
    with pytest.raises(FlashLipsError, match="above 0"):
        p.resample(wave(5), Fraction(0))
    with pytest.raises(FlashLipsError, match="0 s or more"):
        p.smooth(wave(5), -1.0)


def test_frame_rates_with_a_few_decimals_mean_the_exact_ones() -> None:
    ntsc = {23.976: 24, 23.98: 24, 29.97: 30, 29.97002997: 30, 59.94: 60, 119.88: 120}
    for number, base in ntsc.items():
        assert p.frame_rate(number) == Fraction(base * 1000, 1001)
    for number in (1, 12, 24, 25, 30, 50, 60, 1000):
        assert p.frame_rate(float(number)) == number
    assert p.frame_rate(12.5) == Fraction(25, 2) and p.frame_rate(25.1) == Fraction(251, 10)
    with pytest.raises(FlashLipsError, match="above 0"):
        p.frame_rate(0.0)


def test_spread_poses_are_rows_of_the_track_away_from_its_ends() -> None:
    poses = LipPoses(torch.arange(100.0)[:, None].expand(100, 12), Fraction(25))
    assert p.spread(poses, 4)[:, 0].tolist() == [12, 37, 62, 87]
    assert torch.equal(p.spread(poses, 200), poses.values)
    assert p.spread(LipPoses(torch.zeros(0, 12), Fraction(25)), 4).shape == (0, 12)


def test_absent_rows_are_filled_from_their_neighbours() -> None:
    values = torch.tensor([[9.0], [1.0], [9.0], [3.0], [9.0]])
    filled = p.fill_absent(values, np.array([False, True, False, True, False]))
    assert filled[:, 0].tolist() == [1, 1, 2, 3, 3]


def test_motion_is_fitted_to_what_a_person_shows() -> None:
    rest = torch.zeros(12)
    poses = LipPoses(torch.linspace(0, 1, 50)[:, None].expand(-1, 12).contiguous(), Fraction(25))
    asked = np.linspace(0, 0.4, 50)
    seen = np.linspace(0.02, 0.22, 50)
    fitted = p.fit_to_range(poses, asked, seen, rest)
    share = float(fitted.values[-1, 0] / poses.values[-1, 0])
    assert abs(share - 1.2 * 0.2 / 0.4) < 0.01
    assert p.fit_to_range(poses, asked, 2 * seen + 0.1, rest) is poses  # who opens wide is asked what the voice asks
    assert p.fit_to_range(poses, asked, 0.1 * seen, rest) is poses  # who does not speak shows no range
