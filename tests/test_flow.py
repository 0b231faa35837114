"""Flow matching and windowed sampling: equalities between two ways of doing the same."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from flashlips_core.audio.rates import features_at_pose_rate
from flashlips_core.flow import FlowBatch, flow_matching_loss, frame_noise, integrate
from flashlips_core.models.pose_transformer import PoseTransformer, PoseTransformerConfig
from flashlips_core.poses.sampling import PoseStream, SamplerSettings, sample_poses, sample_window
from flashlips_core.types import AudioFeatures, FlashLipsError

CONFIG = PoseTransformerConfig(audio_kind="toy", audio_dim=6, width=32, depth=2, num_heads=2)
SETTINGS = SamplerSettings(steps=2, solver="euler", guidance=1.5, temperature=0.7, seed=3, prefix=4, hop=6, lookahead=3)


def make() -> PoseTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = PoseTransformer(CONFIG).eval().requires_grad_(False)
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return network


def features(rows: int, rate: Fraction | int = 50, dim: int = 3) -> AudioFeatures:
    values = torch.randn(rows, dim, generator=torch.Generator().manual_seed(5))
    return AudioFeatures(values, Fraction(rate), "toy", torch.zeros(rows))


def streamed(network: nn.Module, heard: AudioFeatures, sizes: list[int], settings: SamplerSettings = SETTINGS) -> torch.Tensor:
    stream, poses, start = PoseStream(network, heard.kind, heard.rate_hz, torch.ones(2, 12), settings), [], 0
    for size in sizes:
        poses.append(stream.push(heard.values[start : start + size]).values)
        start += size
    poses += [stream.push(heard.values[start:]).values, stream.flush().values]
    return torch.cat(poses)


# Path and loss


class Exact(nn.Module):
    """Knows the poses, so its velocity can be exact where the frame is not committed."""

    def __init__(self, poses: torch.Tensor):
        super().__init__()
        self.poses = poses
        self.seen: dict[str, torch.Tensor] = {}

    def forward(self, z_t, t, audio, sources, emotion, known, drop_audio):
        self.seen = {"z_t": z_t, "t": t, "known": known, "drop_audio": drop_audio}
        t = t[:, None, None]
        return (self.poses - z_t) / (1 - t)  # z - eps, from z_t = (1 - t) eps + t z


def make_batch(items: int = 64) -> FlowBatch:
    random = torch.Generator().manual_seed(0)
    return FlowBatch(
        torch.randn(items, 20, 12, generator=random), torch.zeros(items, 20, 6), torch.zeros(items, 1, 12), torch.ones(items, 20)
    )


def test_the_exact_velocity_has_no_loss():
    batch = make_batch()
    assert flow_matching_loss(Exact(batch.poses), batch, torch.Generator().manual_seed(1)) < 1e-6


def test_committed_frames_are_clean_in_training_and_audio_is_dropped_at_its_rate():
    batch = make_batch(2000)
    network = Exact(batch.poses)
    flow_matching_loss(network, batch, torch.Generator().manual_seed(1), audio_dropout=0.1, max_prefix=8)
    known = network.seen["known"]
    assert torch.equal(network.seen["z_t"][known], batch.poses[known])
    assert set(known.sum(1).tolist()) == set(range(9))
    assert network.seen["drop_audio"].float().mean() == pytest.approx(0.1, abs=0.02)


def test_frames_without_a_label_do_not_count():
    batch = make_batch()
    spoilt = dataclasses.replace(batch, poses=batch.poses.clone(), weight=batch.weight.clone())
    spoilt.weight[:, 16:] = 0
    spoilt.poses[:, 18:] = 1e3
    assert flow_matching_loss(Exact(batch.poses), spoilt, torch.Generator().manual_seed(1), max_prefix=1) < 1e-6


# ODE


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_solvers_have_their_order_on_an_exponential(solver, order):
    def error(steps: int) -> float:
        z = integrate(lambda z, t: z, torch.ones(1, dtype=torch.float64), steps, solver)
        return abs(z.item() - math.e)

    assert error(20) / error(40) == pytest.approx(2**order, rel=0.1)


def test_euler_is_exact_on_a_straight_path():
    start, end = torch.zeros(3), torch.tensor([1.0, -2.0, 3.0])
    torch.testing.assert_close(integrate(lambda z, t: end - start, start, 7, "euler"), end)


def test_an_unknown_solver_is_refused():
    with pytest.raises(FlashLipsError, match="solver"):
        SamplerSettings(solver="rk4")
    with pytest.raises(FlashLipsError, match="hop"):
        SamplerSettings(hop=0)


def test_noise_depends_on_seed_and_absolute_frame_alone():
    whole = frame_noise(7, range(100), 12)
    assert torch.equal(whole[40:60], frame_noise(7, range(40, 60), 12))
    assert not torch.equal(whole, frame_noise(8, range(100), 12))
    assert frame_noise(7, range(5, 5), 12).shape == (0, 12)


def test_noise_is_standard_normal_and_uncorrelated():
    noise = frame_noise(0, range(20_000), 12)
    assert noise.mean().abs() < 0.01
    assert noise.std() == pytest.approx(1, abs=0.01)
    assert (torch.corrcoef(noise.T) - torch.eye(12)).abs().max() < 0.04
    assert torch.corrcoef(torch.stack([noise[1:, 0], noise[:-1, 0]]))[0, 1].abs() < 0.04


def test_committed_frames_are_held_at_every_evaluation():
    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.seen: list[torch.Tensor] = []

        def forward(self, z_t, t, *rest):
            self.seen.append(z_t[0, :3].clone())
            return torch.ones_like(z_t)

    committed, network = torch.randn(3, 12), Watch()
    settings = SamplerSettings(steps=3, solver="heun", guidance=2.0)
    poses = sample_window(network, torch.zeros(8, 12), committed, torch.zeros(8, 6), torch.zeros(1, 12), None, settings)
    assert torch.equal(poses[:3], committed)
    torch.testing.assert_close(poses[3:], torch.ones(5, 12))
    assert len(network.seen) == 6 and all(torch.equal(z, committed) for z in network.seen)


# Features


def test_pairs_of_rows_make_a_pose_row_and_the_last_row_is_repeated():
    values = torch.arange(10.0).reshape(5, 2)
    expected = torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 8, 9]])
    assert torch.equal(features_at_pose_rate(values, Fraction(50)), expected)


def test_other_rates_are_interpolated_in_time():
    rate = Fraction(40_000, 1001)  # two rows a pose frame, at 50 a second
    values = torch.arange(100.0)[:, None]
    rows = features_at_pose_rate(values, rate)
    assert rows.shape == (math.ceil(100 * 25 / rate), 2)
    torch.testing.assert_close(rows.flatten()[:100], torch.arange(100.0) / 50 * float(rate), atol=1e-4, rtol=0)


def test_features_at_the_pose_rate_pass_through():
    values = torch.randn(7, 3)
    assert torch.equal(features_at_pose_rate(values, Fraction(25)), values)


# Streaming


@pytest.mark.parametrize("rows", [1, 2, 25, 26, 101])
@pytest.mark.parametrize("split", [[], [1] * 60, [7, 13, 29], [100]])
def test_streamed_poses_equal_the_offline_ones_however_the_audio_is_split(rows, split):
    network, heard = make(), features(rows)
    offline = sample_poses(network, heard, torch.ones(2, 12), SETTINGS)
    assert len(offline) == math.ceil(rows / 2)
    assert torch.equal(streamed(network, heard, split), offline.values)


@pytest.mark.parametrize("rate", [Fraction(50), Fraction(25), Fraction(40_000, 1001), Fraction(100, 3)])
@pytest.mark.parametrize("prefix", [0, 4])
def test_streaming_works_at_any_feature_rate_and_without_a_prefix(rate, prefix):
    dim = 3 if round(rate / 25) == 2 else 6
    network, heard = make(), features(90, rate, dim)
    settings = dataclasses.replace(SETTINGS, prefix=prefix)
    offline = sample_poses(network, heard, torch.ones(2, 12), settings)
    assert torch.equal(streamed(network, heard, [5] * 12, settings), offline.values)


def test_windows_are_what_the_definition_says():
    network, heard = make(), features(40)
    audio, sources = features_at_pose_rate(heard.values, heard.rate_hz), torch.ones(2, 12)
    noise = frame_noise(SETTINGS.seed, range(20), 12)
    first = sample_window(network, noise[:9], noise[:0], audio[:9], sources, None, SETTINGS)[:6]
    second = sample_window(network, noise[2:15], first[2:6], audio[2:15], sources, None, SETTINGS)[4:10]
    offline = sample_poses(network, heard, sources, SETTINGS)
    assert torch.equal(offline.values[:12], torch.cat([first, second]))


def test_a_stream_gives_poses_before_the_end_and_keeps_little():
    network, heard = make(), features(2000)
    stream, count = PoseStream(network, heard.kind, heard.rate_hz, None, SETTINGS), 0
    for start in range(0, 2000, 10):
        count += len(stream.push(heard.values[start : start + 10]))
        assert (start + 10) // 2 - count <= SETTINGS.hop + SETTINGS.lookahead
        assert len(stream._rows) <= 2 * (SETTINGS.window + 10)


def test_no_temperature_means_no_randomness():
    network, heard = make(), features(30)
    calm = [sample_poses(network, heard, None, dataclasses.replace(SETTINGS, temperature=0.0, seed=s)).values for s in (1, 2)]
    wild = [sample_poses(network, heard, None, dataclasses.replace(SETTINGS, seed=s)).values for s in (1, 2)]
    assert torch.equal(*calm)
    assert not torch.allclose(*wild)


def test_guidance_of_one_is_the_conditional_velocity():
    network, heard = make(), features(12)
    settings = [dataclasses.replace(SETTINGS, guidance=g) for g in (1.0, 1.0 + 1e-7)]
    plain, near = (sample_poses(network, heard, None, s).values for s in settings)
    torch.testing.assert_close(plain, near, atol=1e-4, rtol=1e-4)


def test_bad_features_are_refused_in_one_sentence():
    network = make()
    with pytest.raises(FlashLipsError, match="empty"):
        sample_poses(network, features(0))
    with pytest.raises(FlashLipsError, match="listens to 'toy'"):
        sample_poses(network, dataclasses.replace(features(5), kind="other"))
    with pytest.raises(FlashLipsError, match="takes 3 audio numbers"):
        sample_poses(network, features(5, dim=4))
    with pytest.raises(FlashLipsError, match="NaN"):
        sample_poses(network, dataclasses.replace(features(5), values=torch.full((5, 3), math.nan)))
    with pytest.raises(FlashLipsError, match="Source poses"):
        sample_poses(network, features(5), torch.ones(12))
