"""The same work on a CUDA card as on the CPU. Skipped where there is no card."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import TINY_EDITOR, encoded_frames, stored_crops, tiny_codec

from flashlips_core.bench.dubs import demo_clip, demo_voice
from flashlips_core.checkpoint import BUNDLED
from flashlips_core.media import read_frames
from flashlips_core.models.editor_unet import EditorUNet
from flashlips_core.models.lip_encoder import LipEncoder, LipEncoderConfig
from flashlips_core.pipeline import LipSync
from flashlips_core.train.batches.frames import encode_looks, load_frames
from flashlips_core.train.editor.pairs import EditorSettings, Judge, train_editor
from flashlips_core.train.loop.logs import read_rows

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")]
DEVICES = ("cpu", "cuda")


def test_a_dub_on_the_card_is_the_one_of_the_cpu(tmp_path):
    pictures, reports = {}, {}
    track = poses = None
    for device in DEVICES:
        lipsync = LipSync.load(device=device)
        track = track or lipsync.track(demo_clip())
        poses = poses or lipsync.poses_from_audio(demo_voice())
        out = tmp_path / f"{device}.mp4"
        reports[device] = lipsync.dub(demo_clip(), demo_voice(), out, track=track, poses=poses, crf=10, preset="ultrafast")
        pictures[device] = np.stack([frame.planes[0] for frame in read_frames(out)]).astype(float)
    assert reports["cuda"].edited == reports["cpu"].edited > 0
    assert reports["cuda"].references == reports["cpu"].references
    assert np.abs(pictures["cuda"] - pictures["cpu"]).mean() < 1  # of 255 levels; the card computes in bf16


def test_a_step_on_the_card_has_the_losses_of_the_cpu(tmp_path):
    losses = {}
    for device in DEVICES:
        frames, codec = encoded_frames().near(device), tiny_codec().to(device)
        settings = EditorSettings(str(tmp_path / device), 3, batch_size=4, log_every=1, device=device)
        torch.manual_seed(0)
        train_editor(EditorUNet(TINY_EDITOR), frames, Judge(codec), settings)
        rows = read_rows(tmp_path / device / "losses.csv")
        losses[device] = [{name: float(row[name]) for name in ("latent", "pixel", "lips", "sharpness")} for row in rows]
    assert len(losses["cuda"]) == 3
    for ours, theirs in zip(losses["cuda"], losses["cpu"], strict=True):
        assert ours == pytest.approx(theirs, rel=0.02)


def test_fine_tunings_fit_a_card_of_6_gb():
    from flashlips_core.train.cost.speed import measure

    held = {row["name"]: row["peak_gb"] for row in measure("cuda", only="fine-tune")["rows"]}
    assert all(held[f"fine-tune, {name}"] < 2 for name in BUNDLED)
    assert held["fine-tune, unet-250m, 512 px, LoRA 16"] < 5.5  # the driver takes the rest


def test_looks_that_the_card_draws_are_those_of_the_cpu(tmp_path):
    store, looks = stored_crops(tmp_path / "crops"), {}
    for device in DEVICES:
        torch.manual_seed(0)
        reader = LipEncoder(LipEncoderConfig(channels=(8, 8), blocks=(1, 1), mouth_px=32)).eval().to(device)
        codec = tiny_codec().to(device)
        encode_looks(store, codec, reader, tmp_path / device, 2, 5, seed=0, strength=0.0, crop_px=128, device=device)
        looks[device] = load_frames([tmp_path / device])
    for name in ("latents", "poses", "references", "windows"):
        ours, theirs = (getattr(looks[device], name).float() for device in DEVICES)
        assert (ours - theirs).abs().max() <= 0.02 * theirs.abs().max()
