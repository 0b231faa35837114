"""The pose transformer: sizes, conditions, and what must not matter."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from flashlips_core import checkpoint
from flashlips_core.flow import integrate
from flashlips_core.loading import load_network
from flashlips_core.models.pose_transformer import POSE_150M, POSE_MINI, PoseTransformer, PoseTransformerConfig

TINY = PoseTransformerConfig(audio_kind="toy", audio_dim=6, width=32, depth=2, num_heads=2)


def make(config: PoseTransformerConfig = TINY) -> PoseTransformer:
    """A network whose zero-initialised layers were shaken, so that every input matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = PoseTransformer(config).eval().requires_grad_(False)
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return network


def inputs(batch: int = 2, frames: int = 20, config: PoseTransformerConfig = TINY) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return {
        "z_t": torch.randn(batch, frames, config.pose_dim, generator=random),
        "t": torch.rand(batch, generator=random),
        "audio": torch.randn(batch, frames, config.audio_dim, generator=random),
        "sources": torch.randn(batch, 3, config.pose_dim, generator=random),
    }


@pytest.mark.parametrize(("config", "count"), [(POSE_150M, 149_748_492), (POSE_MINI, 2_450_700)])
def test_presets_have_their_number_of_parameters(config, count):
    with torch.device("meta"):
        network = PoseTransformer(config)
    assert sum(p.numel() for p in network.parameters()) == count


def test_a_batch_equals_its_items_one_by_one():
    network, given = make(), inputs(4)
    together = network(**given)
    alone = torch.cat([network(**{k: v[i : i + 1] for k, v in given.items()}) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_the_order_and_repetition_of_sources_do_not_matter():
    network, given = make(), inputs()
    expected = network(**given)
    shuffled = network(**{**given, "sources": given["sources"].flip(1).repeat(1, 2, 1)})
    torch.testing.assert_close(shuffled, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(network(**{**given, "sources": given["sources"] + 1}), expected)


def test_no_source_poses_are_allowed():
    given = inputs()
    assert make()(**{**given, "sources": given["sources"][:, :0]}).isfinite().all()


def test_dropped_audio_is_not_heard_and_other_items_are():
    network, given = make(), inputs()
    drop = torch.tensor([True, False])
    other = {**given, "audio": given["audio"] + 1}
    before, after = network(**given, drop_audio=drop), network(**other, drop_audio=drop)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


def test_frames_hear_both_ways_in_time():
    network, given = make(), inputs()
    changed = given["audio"].clone()
    changed[:, 10] += 1
    difference = (network(**given) - network(**{**given, "audio": changed})).abs().amax(dim=(0, 2))
    assert (difference > 0).all()


def test_known_frames_are_told_apart():
    network, given = make(), inputs()
    known = torch.zeros(2, 20, dtype=torch.bool)
    known[:, :4] = True
    assert torch.equal(network(**given), network(**given, known=torch.zeros_like(known)))
    assert not torch.allclose(network(**given), network(**given, known=known))


def test_emotion_is_heard_only_by_networks_that_take_it():
    network, given = make(dataclasses.replace(TINY, emotion_dim=5)), inputs()
    silent = network(**given)
    assert not torch.allclose(network(**given, emotion=torch.ones(2, 5)), silent)
    assert torch.equal(make()(**given, emotion=torch.ones(2, 5)), make()(**given))


def test_audio_is_standardised_by_the_buffers():
    network, given = make(), inputs()
    expected = network(**given)
    network.audio_mean.fill_(3.0)
    network.audio_std.fill_(2.0)
    torch.testing.assert_close(network(**{**given, "audio": given["audio"] * 2 + 3}), expected, atol=1e-5, rtol=1e-5)


def test_an_untrained_network_samples_around_its_linear_forecast():
    network, given = PoseTransformer(TINY).eval().requires_grad_(False), inputs()
    random = torch.Generator().manual_seed(2)
    network.forecast_audio.copy_(0.1 * torch.randn(network.forecast_audio.shape, generator=random))
    network.forecast_source.copy_(0.3 * torch.eye(12))
    network.forecast_bias.fill_(0.2)
    network.forecast_spread.copy_(torch.linspace(0.5, 1, 12))
    mean, spread = network.forecast(given["audio"], given["sources"], None)

    def velocity(z: torch.Tensor, t: float) -> torch.Tensor:
        return network(z, torch.full((2,), t), given["audio"], given["sources"])

    drawn = integrate(velocity, given["z_t"], 60, "midpoint")
    torch.testing.assert_close(drawn, mean + spread * given["z_t"], atol=2e-3, rtol=2e-3)


def test_a_checkpoint_gives_the_same_network_back(tmp_path):
    network, given = make(), inputs()
    network.rest_pose.copy_(torch.arange(12.0))
    checkpoint.save(network, tmp_path / "pose-model.safetensors", "pose-model", {}, torch.float32)
    loaded = load_network("pose-model", tmp_path / "pose-model.safetensors")
    assert loaded.config == network.config
    assert torch.equal(loaded.rest_pose, network.rest_pose)
    assert torch.equal(loaded(**given), network(**given))
