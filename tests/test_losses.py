"""Losses and their frozen networks: real architectures with random weights, saved in the file formats they are published in."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from flashlips_core.models.identity import DlibFaceNet, FaceNet, face_chip
from flashlips_core.models.vgg import VGG16_CONVS, VGG19_CONVS, VGGFeatures
from flashlips_core.pretrained import load_identity, load_vgg
from flashlips_core.train.editor.losses import (
    IdentityLoss,
    PerceptualLoss,
    l1,
    latent_mask,
    lips_l1,
    sharpness_loss,
    texture_loss,
)
from flashlips_core.types import FlashLipsError

SHARED = Path(__file__).resolve().parents[2] / "shared"


def torchvision_vgg19() -> nn.Sequential:
    """``features`` of torchvision's vgg19, rebuilt: the published indices follow from its plan."""
    layers, inputs = [], 3
    for count, outputs in zip(VGG19_CONVS, (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def save_face_api(folder: Path) -> DlibFaceNet:
    """A random dlib network as face-api publishes it: uint8 with scale and min, affine layers apart, two shards."""
    generator = np.random.default_rng(0)
    network, entries, raw = DlibFaceNet(), [], b""

    def add(name: str, shape: tuple[int, ...], spread: float, centre: float = 0.0, is_quantised: bool = True) -> torch.Tensor:
        nonlocal raw
        entry = {"name": name, "shape": list(shape), "dtype": "float32"}
        if is_quantised:
            data = generator.integers(0, 256, shape, dtype=np.uint8)
            scale, minimum = 2 * spread / 255, centre - spread
            entry["quantization"] = {"dtype": "uint8", "scale": scale, "min": minimum}
            values = data.astype(np.float32) * np.float32(scale) + np.float32(minimum)
        else:
            data = values = generator.normal(centre, spread, shape).astype("<f4")
        entries.append(entry)
        raw += data.tobytes()
        return torch.from_numpy(values)

    for name, conv in network.named_modules():
        if isinstance(conv, nn.Conv2d):
            source, out = name.removeprefix("blocks.").replace(".", "/"), conv.out_channels
            filters = add(
                f"{source}/conv/filters", (*conv.kernel_size, conv.in_channels, out), 0.05, is_quantised="conv64" not in source
            )
            bias, scale = add(f"{source}/conv/bias", (out,), 0.01), add(f"{source}/scale/weights", (out,), 0.1, 1.0)
            shift = add(f"{source}/scale/biases", (out,), 0.1)
            conv.weight.data = filters.permute(3, 2, 0, 1) * scale.view(-1, 1, 1, 1)
            conv.bias.data = bias * scale + shift
    network.fc.weight.data = add("fc", (256, 128), 0.05).T
    paths = ["face_recognition_model-shard1", "face_recognition_model-shard2"]
    for path, part in zip(paths, (raw[:100_000], raw[100_000:]), strict=True):
        (folder / path).write_bytes(part)
    (folder / "face_recognition_model-weights_manifest.json").write_text(json.dumps([{"weights": entries, "paths": paths}]))
    return network.eval()


def faces(count: int = 2, size: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_masked_l1_is_the_mean_over_the_mask_alone():
    prediction, target, mask = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    prediction[..., :2, :2], prediction[..., 3, 3], mask[..., :2, :2] = 0.5, 9.0, 1.0
    assert l1(prediction, target, mask).item() == pytest.approx(0.5)
    assert l1(prediction, target).item() == pytest.approx((0.5 * 4 + 9) / 16)


def test_an_empty_mask_gives_zero_and_not_nan():
    prediction = torch.ones(1, 4, 4, 4, requires_grad=True)
    loss = l1(prediction, torch.zeros(1, 4, 4, 4), torch.zeros(1, 1, 4, 4))
    loss.backward()
    assert loss.item() == 0 and prediction.grad.isfinite().all()


def test_lips_that_are_too_small_do_not_count():
    images, target, lips = torch.ones(2, 3, 32, 32), torch.zeros(2, 3, 32, 32), torch.zeros(2, 1, 32, 32)
    lips[0, :, :8, :8], lips[1, :, 0, 0] = 1, 1
    images[1] = 5
    assert lips_l1(images, target, lips).item() == pytest.approx(1.0)
    assert lips_l1(images[1:], target[1:], lips[1:]).item() == 0


def test_latent_mask_keeps_the_area():
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 20:50, 3:61] = 1
    assert latent_mask(mask, (8, 8)).mean().item() == pytest.approx(mask.mean().item())


def test_losses_of_half_precision_are_float32():
    assert l1(torch.zeros(1, 4, 2, 2, dtype=torch.bfloat16), torch.ones(1, 4, 2, 2, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_vgg19_from_torchvisions_layout_equals_torchvisions_network(tmp_path, suffix):
    torch.manual_seed(0)
    network = torchvision_vgg19()
    tensors = {f"features.{key}": value for key, value in network.state_dict().items()} | {
        "classifier.0.weight": torch.zeros(2, 2)
    }
    path = tmp_path / f"vgg19-dcbb9e9d{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    vgg, images = load_vgg(tmp_path), faces()
    assert vgg.name == "VGG19" and not vgg.is_stand_in
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x, expected = ((images + 1) / 2 - mean) / deviation, []
    for i, layer in enumerate(network):
        x = layer(x)
        if i in (1, 6, 11, 20, 29):  # relu1_1, relu2_1, relu3_1, relu4_1, relu5_1
            expected.append(x)
    for ours, theirs in zip(vgg(images), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_vgg19_with_a_missing_layer_is_refused_by_name(tmp_path):
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3), "features.0.bias": torch.zeros(64)}, tmp_path / "vgg19.safetensors")
    with pytest.raises(FlashLipsError, match="features.2.weight"):
        load_vgg(tmp_path)


def test_vgg16_stand_in_takes_blue_first_caffe_range_and_says_what_it_is(tmp_path, caplog):
    tensors, inputs = {}, 3
    for stage, (count, outputs) in enumerate(zip(VGG16_CONVS[:4], (64, 128, 256, 512), strict=True), start=1):
        for i in range(1, count + 1):
            tensors[f"conv{stage}_{i}.weight"] = torch.randn(outputs, inputs, 3, 3).half() * 0.02
            tensors[f"conv{stage}_{i}.bias"] = torch.zeros(outputs).half()
            inputs = outputs
    save_file(tensors, tmp_path / "vgg16_imagenet.safetensors")
    with caplog.at_level(logging.WARNING):
        vgg = load_vgg(tmp_path / "vgg16_imagenet.safetensors")
    assert vgg.is_stand_in and "stand-in" in vgg.name and "stands in" in caplog.text
    images = faces()
    caffe = (images.flip(1) + 1) * 127.5 - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    weight, bias = tensors["conv1_1.weight"].float(), tensors["conv1_1.bias"].float()
    first = F.relu(F.conv2d(caffe, weight, bias, padding=1))
    torch.testing.assert_close(vgg(images)[0], first, rtol=1e-4, atol=1e-3)


def tiny_perceptual(is_stand_in: bool = False) -> PerceptualLoss:
    torch.manual_seed(0)
    return PerceptualLoss(VGGFeatures((1, 2), mean=(0.5,) * 3, channels=(4, 4), is_stand_in=is_stand_in))


def test_perceptual_loss_is_zero_on_itself_and_trains_the_image_alone():
    loss, target = tiny_perceptual(), faces()
    assert loss(target, target).item() == 0
    images = (target + 0.1).requires_grad_()
    loss(images, target).backward()
    assert images.grad.abs().sum() > 0 and all(p.grad is None for p in loss.parameters())


def test_the_perceptual_loss_of_a_stand_in_does_not_depend_on_the_size_of_activations():
    loss, images, target = tiny_perceptual(is_stand_in=True), faces(), faces().flip(0)
    before = loss(images, target)
    loss.features.convs["conv1_1"].weight.data *= 7
    loss.features.convs["conv1_1"].bias.data *= 7
    first_stage = PerceptualLoss(VGGFeatures((1,), mean=(0.5,) * 3, channels=(4,), is_stand_in=True))
    first_stage.features.convs["conv1_1"].load_state_dict(loss.features.convs["conv1_1"].state_dict())
    scaled = first_stage(images, target)
    first_stage.features.convs["conv1_1"].weight.data /= 7
    first_stage.features.convs["conv1_1"].bias.data /= 7
    torch.testing.assert_close(first_stage(images, target), scaled)
    assert before > 0


@pytest.mark.parametrize("source", ["", "face_recognition_model-shard1", "face_recognition_model-weights_manifest.json"])
def test_dlib_network_from_face_apis_files(tmp_path, source):
    expected, images = save_face_api(tmp_path), faces(size=160)
    network = load_identity(tmp_path / source)
    assert network.is_stand_in and network(images).shape == (2, 128)
    torch.testing.assert_close(network(images), expected(images), rtol=1e-4, atol=1e-5)


def test_dlib_files_that_are_cut_short_are_refused(tmp_path):
    save_face_api(tmp_path)
    path = tmp_path / "face_recognition_model-shard2"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(FlashLipsError, match="do not fit each other"):
        load_identity(tmp_path)


def test_vggface2_from_facenet_pytorchs_layout(tmp_path):
    torch.manual_seed(0)
    network = FaceNet().eval()
    keys = set(network.state_dict())
    assert sum(p.numel() for p in network.parameters()) == 23_482_624  # InceptionResnetV1 without its classifier
    assert {"conv2d_1a.conv.weight", "repeat_1.4.branch2.2.bn.running_var", "repeat_2.9.branch1.1.conv.weight"} <= keys
    assert {"mixed_6a.branch1.2.bn.bias", "mixed_7a.branch2.2.conv.weight", "block8.conv2d.bias", "last_bn.running_mean"} <= keys
    tensors = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(
        {**tensors, "logits.weight": torch.zeros(8, 512), "logits.bias": torch.zeros(8)}, tmp_path / "20180402-114759-vggface2.pt"
    )
    loaded, images = load_identity(tmp_path), faces(size=128)
    assert not loaded.is_stand_in
    torch.testing.assert_close(loaded(images), network(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loaded(images).norm(dim=1), torch.ones(2))


def test_identity_loss_is_zero_on_itself_and_trains_the_image_alone():
    torch.manual_seed(0)
    loss, target = IdentityLoss(DlibFaceNet()), faces()
    assert loss(target, target).item() == pytest.approx(0, abs=1e-5)
    images = (target.flip(0)).requires_grad_()
    loss(images, target).backward()
    assert images.grad.abs().sum() > 0 and all(p.grad is None for p in loss.parameters())


def test_face_chip_is_the_upper_middle_of_the_crop():
    images = torch.zeros(1, 3, 256, 256)
    images[..., 216:, :], images[..., :20], images[..., 236:] = 1, 1, 1
    assert face_chip(images, 216).abs().max().item() == 0


@pytest.mark.parametrize("load", [load_vgg, load_identity])
def test_missing_weights_say_what_is_looked_for(tmp_path, load):
    with pytest.raises(FlashLipsError, match="give the file, or a folder"):
        load(tmp_path)


def test_a_pickle_with_code_is_refused(tmp_path):
    torch.save({"features.0.weight": Path("x")}, tmp_path / "vgg19.pth")
    with pytest.raises(FlashLipsError, match="not a readable file of tensors"):
        load_vgg(tmp_path)


@pytest.mark.shared
def test_dlib_stand_in_tells_real_people_apart():
    corners = {  # upper left of the 156 px editor crop in the first frame, by MediaPipe's points
        "s2/bbaf1n": (41, 76),
        "s2/bbaf2s": (40, 83),
        "s30/bbac3n": (62, 96),
        "s30/bbac4s": (50, 99),
        "s33/bbac1s": (22, 86),
        "s33/bbac2p": (45, 75),
    }
    folder = SHARED / "data/grid_people/train"
    if not all((folder / f"{clip}.mp4").is_file() for clip in corners) or not (SHARED / "weights").is_dir():
        pytest.skip("the shared folder with GRID and dlib's network is absent")
    av = pytest.importorskip("av")
    network, embeddings = load_identity(SHARED / "weights"), []
    for clip, (x, y) in corners.items():
        with av.open(str(folder / f"{clip}.mp4")) as container:
            frame = next(container.decode(video=0)).to_ndarray(format="rgb24")[y : y + 156, x : x + 156]
        embeddings.append(network(torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 127.5 - 1))
    distances = torch.cdist(*[torch.cat(embeddings)] * 2)
    is_same = torch.arange(6)[:, None] // 2 == torch.arange(6) // 2
    assert distances[is_same].max() < 0.4 and distances[~is_same].min() > 0.55


def test_sharpness_loss_is_zero_for_equal_images_and_blind_to_flat_offsets():
    image = torch.randn(1, 3, 32, 32)
    assert sharpness_loss(image, image) == 0
    assert sharpness_loss(image + 0.5, image) < 1e-6 < sharpness_loss(F.avg_pool2d(image, 3, 1, 1), image)


def test_texture_loss_prefers_edges_in_a_wrong_place_to_a_blur():
    teeth = (torch.arange(64) // 4 % 2 * 2.0 - 1).expand(1, 3, 64, 64)
    moved, blurred = teeth.roll(4, dims=3), F.avg_pool2d(F.pad(teeth, (3, 4, 3, 4), "reflect"), 8, 1)
    assert texture_loss(teeth, teeth) == 0 and texture_loss(teeth + 0.5, teeth) < 1e-6
    assert texture_loss(moved, teeth) < 0.1 * texture_loss(blurred, teeth)
    assert sharpness_loss(moved, teeth) > sharpness_loss(blurred, teeth)  # what it is for
