"""Renditions of voices by torchaudio."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from flashlips_core.train.audio import with_others
from flashlips_core.train.batches import rooms
from flashlips_core.types import FlashLipsError


@pytest.fixture
def torchaudio():
    return pytest.importorskip("torchaudio.functional", reason="torchaudio is not installed (requirements-speech.txt)")


def tone(seconds: float = 1.0) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(int(16000 * seconds)) / 16000)


def test_without_torchaudio_a_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    monkeypatch.setitem(sys.modules, "torchaudio.functional", None)
    with pytest.raises(FlashLipsError, match="--no-deps -r requirements-speech.txt"):
        rooms.faster(tone(), 1.1)


def test_a_faster_voice_is_shorter_and_higher(torchaudio):
    fast = rooms.faster(tone(), 1.25)
    assert abs(len(fast) - 12800) < 50
    assert abs(float(torch.fft.rfft(fast).abs().argmax()) * 16000 / len(fast) - 550) < 3


def test_a_room_adds_what_comes_later_and_moves_nothing(torchaudio):
    click = torch.zeros(8000)
    click[4000] = 1.0
    wet = rooms.in_a_room(click, rooms.echo_of(np.random.default_rng(0), 0.2, 0.5))
    assert wet.argmax() == 4000 and torch.allclose(wet[:4000], torch.zeros(4000), atol=1e-5)
    assert torch.isclose(wet[4001:].square().sum(), torch.tensor(0.5), rtol=0.1)


def test_others_speak_behind_at_the_level_asked_for(torchaudio):
    noise = torch.randn(16000, generator=torch.Generator().manual_seed(0))
    added = rooms.in_noise(tone(), noise, 10.0) - tone()
    assert abs(10 * float((tone().square().sum() / added.square().sum()).log10()) - 10) < 0.1
    assert torch.equal(rooms.in_noise(torch.zeros(100), noise[:100], 10.0), torch.zeros(100))
    both = torch.stack([tone(), noise])
    assert torch.equal(with_others(both, 0.0, torch.Generator().manual_seed(0)), both)
    assert not torch.equal(with_others(both, 1.0, torch.Generator().manual_seed(0)), both)


def test_a_rendition_keeps_its_level_and_says_its_speed(torchaudio):
    sound, speed = rooms.rendition(tone().numpy(), np.random.default_rng(3))
    assert abs(len(sound) * speed - 16000) < 400 and np.abs(sound).max() <= 1 and np.isfinite(sound).all()
