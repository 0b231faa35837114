"""The loaders: roles by header, VAE objects around our codecs, downloads with checksums, and the nodes in the real ComfyUI."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from face_clip import DEMO
from torch import nn
from toy_dubs import CROP_PX, toy_networks

from flashlips_core import checkpoint
from flashlips_core.checkpoint import bundled_names
from flashlips_core.codec import SDXL_SCALE, UnscaledCodec, load_codec, wrap_vae
from flashlips_core.downloads import fetch
from flashlips_core.loading import STAGE_1, folder_role, load_part, role_of
from flashlips_core.pipeline import LipSync
from flashlips_core.types import FlashLipsError

# ---- parts -----------------------------------------------------------------------------------------------------------------


def test_a_files_role_is_read_from_its_header_and_again_when_it_changes(model_folder, tmp_path) -> None:  # noqa: F811
    path = tmp_path / "model.safetensors"
    shutil.copy(model_folder / "editor.safetensors", path)
    assert role_of(path) == "editor"
    shutil.copy(model_folder / "codec.safetensors", path)
    assert role_of(path) == "codec"
    path.write_bytes(b"not a model")
    assert role_of(path) is None and role_of(tmp_path / "missing.safetensors") is None
    checkpoint.save(toy_networks()["editor"], path, STAGE_1, {})
    assert role_of(path) == "editor" and load_part("editor", path).is_stage_1


def test_a_folder_is_told_by_its_config(tmp_path) -> None:
    config = tmp_path / "config.json"
    for fields, role in (
        ({"model_type": "hubert"}, "audio-encoder"),
        ({"model_type": "bert"}, None),
        ({"_class_name": "AutoencoderKL"}, "codec"),
    ):
        config.write_text(json.dumps(fields))
        assert folder_role(tmp_path) == role
    config.write_text("{")
    assert folder_role(tmp_path) is None
    for half in ("encoder", "decoder"):
        (tmp_path / f"taesdxl_{half}.safetensors").touch()
    assert folder_role(tmp_path) == "codec"


def test_an_editor_brings_the_bundled_codec_that_it_was_trained_with(model_folder, tmp_path) -> None:  # noqa: F811
    codecs = {"bundled": "bundled", "bundled-fast": "bundled-fast", "bundled-transformer": "bundled-fast"}
    assert set(bundled_names("editor")) == set(codecs)
    for name, codec in codecs.items():
        assert LipSync(editor=name).codec.name == LipSync(editor=load_part("editor", name)).codec.name == codec
    assert LipSync(editor="bundled-fast", codec="bundled").codec.name == "bundled"
    tuned = tmp_path / "me.safetensors"
    checkpoint.save(toy_networks()["editor"], tuned, "editor", {"codec": "bundled-fast"})
    assert load_part("editor", tuned).codec == LipSync(editor=tuned).codec.name == "bundled-fast"
    assert load_part("editor", model_folder / "editor.safetensors").codec == "bundled"


def test_a_loaded_part_brings_its_files_notes_into_the_pipeline(model_folder, lipsync) -> None:  # noqa: F811
    part = load_part("editor", model_folder / "editor.safetensors")
    made = LipSync(editor=part, codec=lipsync.codec, device="cpu")
    assert made.editor is part.network and made.crop_px == CROP_PX and not made.is_stage_1
    with pytest.raises(FlashLipsError, match="is a checkpoint for 'codec', but 'editor' is needed"):
        load_part("editor", model_folder / "codec.safetensors")


def test_a_detector_given_as_a_function_is_made_when_it_is_needed() -> None:
    made = []
    sync = LipSync(detector=lambda: made.append(1) or "detector", device="cpu")
    assert not made and sync.detector == "detector" and sync.detector == "detector" and made == [1]


# ---- VAEs ------------------------------------------------------------------------------------------------------------------


class ToyVAE(nn.Module):
    """A network in SDXL's unscaled space; like ComfyUI's, its outputs are exact and unclamped."""

    def __init__(self, codec: nn.Module) -> None:
        super().__init__()
        self.inner = UnscaledCodec(codec)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.inner.encode(images)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.inner.decode(latents)


def vae_object(network: nn.Module, **changes: object) -> SimpleNamespace:
    """The attributes of ComfyUI's VAE class that matter here, with its own conversions."""
    fields = dict(first_stage_model=network, latent_channels=4, latent_dim=2, downscale_ratio=8, vae_dtype=torch.float32)
    fields |= dict(device=torch.device("cpu"), process_input=lambda image: image * 2 - 1)
    fields |= dict(process_output=lambda image: image.add_(1.0).div_(2.0).clamp_(0.0, 1.0))
    return SimpleNamespace(**fields | changes)


def test_any_vae_in_sdxls_space_is_the_same_as_its_codec(model_folder) -> None:  # noqa: F811
    codec = load_codec(model_folder / "codec.safetensors")
    wrapped = wrap_vae(vae_object(ToyVAE(codec)))
    images = torch.rand(2, 3, 40, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = codec.encode(images)
    assert torch.allclose(wrapped.encode(images), latents, atol=1e-5)
    kept = latents.clone()
    assert torch.allclose(wrapped.decode(latents), codec.decode(latents).clamp(-1, 1), atol=1e-4)
    assert torch.equal(latents, kept)


def test_a_vae_of_another_latent_space_is_refused(model_folder) -> None:  # noqa: F811
    network = ToyVAE(load_codec(model_folder / "codec.safetensors"))
    for change in ({"latent_channels": 16}, {"latent_dim": 3}, {"downscale_ratio": 16}):
        with pytest.raises(FlashLipsError, match="not in SDXL's latent space"):
            wrap_vae(vae_object(network, **change))
    network.vae_scale = torch.tensor(0.18215)  # TAESD, Stable Diffusion 1's
    with pytest.raises(FlashLipsError, match="not in SDXL's latent space"):
        wrap_vae(vae_object(network))


# ---- downloads -------------------------------------------------------------------------------------------------------------

FILES = {"config.json": b'{"model_type": "hubert"}', "model.safetensors": bytes(range(256)) * 9000}


@contextmanager
def serving(answer: Callable[[str], bytes | None]) -> Iterator[str]:
    """A server on this machine that sends what ``answer`` has for a path, and 404 for None; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            data = answer(self.path)
            if data is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def hub() -> Iterator[SimpleNamespace]:
    """A hub that answers as Hugging Face does; ``hub.sent`` is what it really sends."""
    sent = dict(FILES)

    def answer(path: str) -> bytes | None:
        if path == "/api/models/someone/hubert/revision/refs%2Fpr%2F1?blobs=true":
            return json.dumps({"siblings": [listed(name, data) for name, data in FILES.items()]}).encode()
        return sent[path.rpartition("/")[2]] if path.startswith("/someone/hubert/resolve/refs%2Fpr%2F1/") else None

    with serving(answer) as url:
        yield SimpleNamespace(url=url, sent=sent)


def listed(name: str, data: bytes) -> dict:
    """A file in the hub's listing: large ones with their SHA-256, small ones with git's hash."""
    entry = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
    return entry | ({"lfs": {"sha256": hashlib.sha256(data).hexdigest()}} if len(data) > 1000 else {})


def test_a_download_arrives_whole_with_progress_and_once(hub, tmp_path) -> None:
    steps = []
    folder = fetch("someone/hubert", tmp_path, tuple(FILES), "refs/pr/1", lambda *s: steps.append(s), hub.url)
    assert folder == tmp_path / "hubert" and {p.name: p.read_bytes() for p in folder.iterdir()} == FILES
    assert steps[-1] == (2, 2) and steps == sorted(steps)
    steps.clear()
    fetch("someone/hubert", tmp_path, tuple(FILES), "refs/pr/1", lambda *s: steps.append(s), hub.url)
    assert not steps


def test_a_damaged_stopped_or_missing_download_leaves_no_file(hub, tmp_path) -> None:
    hub.sent["model.safetensors"] = FILES["model.safetensors"][:-1] + b"x"
    with pytest.raises(FlashLipsError, match="arrived damaged"):
        fetch("someone/hubert", tmp_path, tuple(FILES), "refs/pr/1", endpoint=hub.url)

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("someone/hubert", tmp_path, tuple(FILES), "refs/pr/1", stop, hub.url)
    assert [p.name for p in (tmp_path / "hubert").iterdir()] == ["config.json"]
    with pytest.raises(FlashLipsError, match="has no vocab.json on the hub"):
        fetch("someone/hubert", tmp_path, ("vocab.json",), "refs/pr/1", endpoint=hub.url)
    with pytest.raises(FlashLipsError, match="could not be downloaded .*check the connection"):
        fetch("nobody/nothing", tmp_path, ("config.json",), endpoint=hub.url)


# ---- in ComfyUI ------------------------------------------------------------------------------------------------------------


def node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


@pytest.fixture
def stocked(engine, model_folder):  # noqa: F811
    """The engine with toy networks, and files that are none, in models/flashlips."""
    folder = engine.base / "models" / "flashlips"
    shutil.copytree(model_folder, folder / "toy", dirs_exist_ok=True)
    (folder / "notes.safetensors").write_bytes(b"nothing")
    return engine


@pytest.mark.comfy
@pytest.mark.parametrize("role", ["editor", "lip-encoder", "pose-model"])
def test_a_loader_lists_the_bundled_and_the_files_of_its_role(stocked, role) -> None:
    name = "FlashLipsLoad" + "".join(part.capitalize() for part in role.split("-"))
    info = stocked.node_info(name)["input"]["optional"]["name"]
    options = info[1]["options"] if isinstance(info[0], str) else info[0]
    assert options == [*bundled_names(role), f"toy/{role}.safetensors"]
    for option in options:
        run = stocked.run({"load": node(name, name=option)}, "load")
        assert run.is_success, run.errors
        assert run.outputs["load"][0].role == role
    assert "not in list" in stocked.run({"load": node(name, name="gone.safetensors")}, "load").errors["load"].lower()


@pytest.mark.comfy
def test_a_name_that_went_stale_gives_a_sentence(stocked, tmp_path) -> None:
    path = stocked.base / "models" / "flashlips" / "late.safetensors"
    shutil.copy(path.parent / "toy" / "editor.safetensors", path)
    (tmp_path / "code.py").write_text("def name(): return 'late.safetensors'")  # over a wire, which no list is checked for
    prompt = {"load": node("FlashLipsLoadEditor", name=["name", 0]), "name": node("TestMake", code=f"{tmp_path}/code.py:name")}
    assert stocked.run(prompt, "load").is_success
    path.unlink()
    stocked.reset()
    assert "There is no 'late.safetensors' in models/flashlips any more" in stocked.run(prompt, "load").errors["load"]


@pytest.mark.comfy
@pytest.mark.parametrize("name", ["bundled", "toy/codec.safetensors"])
def test_our_codec_is_a_vae_that_core_encodes_and_decodes_with(stocked, model_folder, name, tmp_path) -> None:  # noqa: F811
    images = torch.rand(2, 64, 48, 3, generator=torch.Generator().manual_seed(0))
    torch.save(images, tmp_path / "images.pt")
    (tmp_path / "code.py").write_text(f"import torch\ndef images(): return torch.load({str(tmp_path / 'images.pt')!r})\n")
    prompt = {
        "images": node("TestMake", code=f"{tmp_path / 'code.py'}:images"),
        "codec": node("FlashLipsLoadCodec", name=name),
        "latent": node("VAEEncode", pixels=["images", 0], vae=["codec", 0]),
        "tiled": node("VAEEncodeTiled", pixels=["images", 0], vae=["codec", 0], tile_size=512, overlap=64, temporal_size=64,
                      temporal_overlap=8),
        "image": node("VAEDecode", samples=["latent", 0], vae=["codec", 0]),
        "pieces": node("VAEDecodeTiled", samples=["latent", 0], vae=["codec", 0], tile_size=512, overlap=64, temporal_size=64,
                       temporal_overlap=8),
    }  # fmt: skip
    run = stocked.run(prompt, ("latent", "tiled", "image", "pieces"))
    assert run.is_success, run.errors
    codec = load_codec("bundled" if name == "bundled" else model_folder / "codec.safetensors")
    latents = codec.encode(images.movedim(-1, 1) * 2 - 1)
    for kept in ("latent", "tiled"):
        assert torch.allclose(run.outputs[kept][0]["samples"] * SDXL_SCALE, latents, atol=1e-4)
    decoded = ((codec.decode(latents).movedim(1, -1) + 1) / 2).clamp(0, 1)
    for kept in ("image", "pieces"):
        assert torch.allclose(run.outputs[kept][0], decoded, atol=1e-4)


CORE_VAE = """
import sys, comfy.taesd.taesd, comfy.utils, torch
[models] = [module for name, module in sys.modules.items() if name.endswith(".bridge_models")]

def stock(path):
    torch.manual_seed(0)
    scale = {"vae_scale": torch.tensor(models.SDXL_SCALE), "vae_shift": torch.tensor(0.0)}
    shapes = comfy.taesd.taesd.TAESD(latent_channels=4).state_dict()  # ComfyUI leaves new weights as memory was
    comfy.utils.save_torch_file({name: 0.1 * torch.randn(value.shape) for name, value in shapes.items()} | scale, path)

@torch.inference_mode()
def differences(value):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    codec, core = models.codec_of(value), value.encode(images.movedim(1, -1))
    latents = codec.encode(images * 2 - 1)
    decoded = (codec.decode(latents).movedim(1, -1).clamp(-1, 1) + 1) / 2
    far = [latents - core * models.SDXL_SCALE, decoded - value.decode(core)]
    return type(codec).__name__, [float(x.abs().max()) for x in far]
"""


@pytest.mark.comfy
def test_a_vae_of_cores_is_a_codec(stocked, tmp_path) -> None:
    """A tiny autoencoder in SDXL's latent space, from models/vae, as the core wraps it and as ComfyUI itself uses it."""
    (tmp_path / "code.py").write_text(CORE_VAE)
    folder = stocked.base / "models" / "vae"
    folder.mkdir(parents=True, exist_ok=True)
    stocked.call(f"{tmp_path / 'code.py'}:stock", path=str(folder / "tiny_xl.safetensors"))
    prompt = {
        "vae": node("FlashLipsLoadCodec", name="tiny_xl.safetensors"),
        "far": node("TestMake", code=f"{tmp_path / 'code.py'}:differences", value=["vae", 0]),
    }
    run = stocked.run(prompt, "far")
    assert run.is_success, run.errors
    kind, far = run.outputs["far"][0]
    assert kind == "CallableCodec" and max(far) < 1e-4


@pytest.mark.comfy
def test_our_audio_encoder_runs_in_cores_audio_encoder_encode(stocked) -> None:
    prompt = {
        "sound": node("EmptyAudio", duration=0.5, sample_rate=44_100, channels=2),
        "encoder": node("FlashLipsLoadAudioEncoder", name="bundled"),
        "encoded": node("AudioEncoderEncode", audio_encoder=["encoder", 0], audio=["sound", 0]),
    }
    for name, dim in (("bundled", None), ("log-mel", 160), ("toy/audio-encoder.safetensors", 16)):
        prompt["encoder"]["inputs"]["name"] = name
        run = stocked.run(prompt, "encoded")
        assert run.is_success, run.errors
        [encoded] = run.outputs["encoded"]
        assert encoded["encoded_audio"].shape[:2] == (1, 25) and encoded["audio_samples"] == 8000
        assert dim is None or encoded["encoded_audio"].shape[2] == dim


@pytest.mark.comfy
def test_a_bundled_codec_that_the_editor_does_not_know_is_refused(stocked) -> None:
    prompt = {
        "video": node("FlashLipsLoadVideo", path=str(DEMO)),
        "editor": node("FlashLipsLoadEditor", name="bundled-fast"),
        "codec": node("FlashLipsLoadCodec", name="bundled"),
        "reader": node("FlashLipsLoadLipEncoder", name="bundled"),
        "set": node("FlashLipsPrepareDataset", video=["video", 0], vae=["codec", 0], lip_encoder=["reader", 0],
                    editor=["editor", 0]),
    }  # fmt: skip
    run = stocked.run(prompt, "set")
    assert "trained with the codec 'bundled-fast', this one is 'bundled'; choose 'bundled-fast' in" in run.errors["set"]


@pytest.mark.comfy
def test_nothing_is_downloaded_unasked(stocked) -> None:
    for name, prompt in (
        ("microsoft/wavlm-base-plus", "FlashLipsLoadAudioEncoder"),
        ("madebyollin/taesdxl", "FlashLipsLoadCodec"),
    ):
        run = stocked.run({"load": node(prompt, name=name)}, "load")
        assert f"'{name}' is not in models/flashlips yet; switch 'download' on" in run.errors["load"]


ROOM = """
import sys, torch

def asked(memory_bytes):
    [models] = [module for name, module in sys.modules.items() if name.endswith(".bridge_models")]
    management, seen = models.management, []
    kept = management.get_torch_device, management.free_memory
    management.free_memory = lambda room, where: seen.append([room, where.type])
    try:
        for kind in ("cpu", "meta"):
            management.get_torch_device = lambda: torch.device(kind)
            assert models.make_room(memory_bytes).type == kind
    finally:
        management.get_torch_device, management.free_memory = kept
    return seen
"""


@pytest.mark.comfy
def test_other_models_are_put_away_for_training_on_a_card(engine, tmp_path) -> None:
    """ "meta" stands for the card."""
    (tmp_path / "code.py").write_text(ROOM)
    [[room, where]] = engine.call(f"{tmp_path / 'code.py'}:asked", memory_bytes=3_000_000_000)
    assert room >= 3_000_000_000 and where == "meta"


# ---- the face detector's weights -------------------------------------------------------------------------------------------

DETECTOR = """
import sys

class Run:
    def __init__(self, steps):
        self.steps = steps

    def stage(self, name):
        self.steps.append(name)

    def progress(self, *step):
        self.steps.append(step)

    def notice(self, text):
        raise RuntimeError(text)


def fetched(url):
    [models] = [module for name, module in sys.modules.items() if name.endswith(".bridge_models")]
    fetch, found, steps = models.fetch, models.found_weights, []
    models.fetch = lambda *given, **named: fetch(*given, **named, endpoint=url)
    models.found_weights = lambda: None  # nothing in this machine's own folders
    try:
        first = models._detector_weights()
        models.fetch_detector(Run(steps))
        count = len(steps)
        models.fetch_detector(Run(steps))
        return [first, str(models._detector_weights()), count, len(steps)]
    finally:
        models.fetch, models.found_weights = fetch, found
"""


@pytest.mark.comfy
def test_the_detectors_weights_are_fetched_once_into_the_models_folder(engine, detector_hub, tmp_path) -> None:
    (tmp_path / "code.py").write_text(DETECTOR)
    track = node("FlashLipsTrackFace", video=["video", 0], every=30)
    prompt = {"video": node("FlashLipsLoadVideo", path=str(DEMO)), "track": track}
    assert engine.run(prompt, "track").is_success and "track" in engine.run(prompt, "track").cached
    before, path, first, both = engine.call(f"{tmp_path / 'code.py'}:fetched", url=detector_hub)
    weights = engine.base / "models" / "flashlips" / "yunet" / "yunet_final.pth"
    assert before is None and path == str(weights) and weights.read_bytes() == WEIGHTS
    assert first and both == first
    # what is found there is what is used, also by a node that has tracked without it
    assert "is not kornia's file" in engine.run(prompt, "track").errors["track"]
    shutil.rmtree(weights.parent)


WEIGHTS = bytes(range(256)) * 8  # of another file than the detector's


@pytest.fixture
def detector_hub() -> Iterator[str]:
    """A hub that has kornia/yunet, with other weights in it."""
    listing = json.dumps({"siblings": [listed("yunet_final.pth", WEIGHTS)]}).encode()
    with serving(lambda path: listing if path.startswith("/api/models/kornia/yunet/") else WEIGHTS) as url:
        yield url
