import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from flashlips_core import checkpoint
from flashlips_core.models.lip_encoder import LipEncoder, LipEncoderConfig
from flashlips_core.types import FlashLipsError

TINY = LipEncoderConfig(channels=(8, 8), blocks=(1, 1), mouth_px=16)


def build(config):
    return LipEncoder(checkpoint.config_from_dict(LipEncoderConfig, config))


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    network = LipEncoder(TINY).eval()
    path = tmp_path / "lips.safetensors"
    checkpoint.save(network, path, "lip-encoder", {"version": "1"}, torch.float32)
    return network, path


def test_a_network_comes_back_as_it_was_saved(saved):
    network, path = saved
    loaded = checkpoint.load(path, "lip-encoder", {"LipEncoder": build})
    crops = torch.randn(2, 3, 64, 64)
    assert loaded.config == TINY
    assert torch.equal(loaded(crops), network(crops))


def test_notes_and_config_are_read_without_the_weights(saved):
    info = checkpoint.info(saved[1])
    assert info.role == "lip-encoder"
    assert info.notes == {"version": "1"}
    assert info.config["channels"] == [8, 8]


def test_a_checkpoint_of_another_role_is_refused(saved):
    with pytest.raises(FlashLipsError, match="'lip-encoder', but 'editor'"):
        checkpoint.load(saved[1], "editor", {})


def test_a_pickle_is_refused_unopened(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"not even a pickle")
    with pytest.raises(FlashLipsError, match="pickle"):
        checkpoint.load(path, "editor", {})


def test_a_truncated_file_is_refused(saved, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(saved[1].read_bytes()[:300])
    with pytest.raises(FlashLipsError, match="not a readable safetensors"):
        checkpoint.load(broken, "lip-encoder", {"LipEncoder": build})


def test_foreign_safetensors_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(FlashLipsError, match="holds no FlashLips model"):
        checkpoint.info(path)


def test_a_missing_weight_is_named(saved, tmp_path):
    tensors, header = checkpoint.read_tensors(saved[1])
    tensors.pop("fc.bias")
    path = tmp_path / "short.safetensors"
    checkpoint.write_tensors(path, tensors, header)
    with pytest.raises(FlashLipsError, match="fc.bias"):
        checkpoint.load(path, "lip-encoder", {"LipEncoder": build})


def test_a_weight_of_another_shape_is_refused(saved, tmp_path):
    tensors, header = checkpoint.read_tensors(saved[1])
    tensors["fc.bias"] = torch.zeros(5)
    path = tmp_path / "odd.safetensors"
    checkpoint.write_tensors(path, tensors, header)
    with pytest.raises(FlashLipsError, match="does not fit"):
        checkpoint.load(path, "lip-encoder", {"LipEncoder": build})


def test_a_file_from_a_newer_version_asks_for_an_update(saved, tmp_path):
    tensors, header = checkpoint.read_tensors(saved[1])
    path = tmp_path / "new.safetensors"
    checkpoint.write_tensors(path, tensors, header | {"version": 99})
    with pytest.raises(FlashLipsError, match="update FlashLips"):
        checkpoint.info(path)


def test_unknown_config_fields_are_refused():
    fields = json.loads(json.dumps(dataclasses.asdict(TINY))) | {"novelty": 1}
    with pytest.raises(FlashLipsError, match="novelty"):
        checkpoint.config_from_dict(LipEncoderConfig, fields)
