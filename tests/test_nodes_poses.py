"""Encode Audio, Sample, Encode, Edit and Preview Lip Poses: encoded audio in the core, the nodes in the real ComfyUI."""

from __future__ import annotations

import base64
import json
import wave
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from flashlips_core import checkpoint
from flashlips_core.audio import (
    LogMelEncoder,
    emotion_for,
    encoded_audio,
    features_for,
    is_classifier,
    known_features,
    load_audio_encoder,
    to_mono_16k,
    with_emotion,
)
from flashlips_core.images.poses import poses_from_images
from flashlips_core.loading import load_network
from flashlips_core.media import load_audio
from flashlips_core.models.pose_transformer import PoseTransformer, PoseTransformerConfig
from flashlips_core.pipeline import LipSync
from flashlips_core.poses import motion as tracks
from flashlips_core.poses.operations import Gain, Hold, Mix, Shift, Smooth, Surroundings, apply_operations, from_json
from flashlips_core.poses.sampling import SamplerSettings, sample_poses
from flashlips_core.poses.silence import silence_gate
from flashlips_core.types import FaceTrack, FlashLipsError, LipPoses

DEMO = Path(__file__).resolve().parents[1] / "flashlips_core" / "demo"
SIDE, NUM_FRAMES = 192, 8
SECONDS = 1


def layers(count: int = 13, rows: int = 49, width: int = 768) -> dict:
    """What ComfyUI's own audio encoder gives for one second: states of every layer, each telling its number."""
    states = tuple(torch.full((1, rows, width), float(i)) for i in range(count))
    return {"encoded_audio": states[-1], "encoded_audio_all_layers": states, "audio_samples": 16_000}


# ---- encoded audio ---------------------------------------------------------------------------------------------------------


def test_our_features_survive_the_dict_and_look_to_others_like_one_layer() -> None:
    features = LogMelEncoder().encode(torch.randn(5000, generator=torch.Generator().manual_seed(0)))
    encoded = with_emotion(encoded_audio(features, 5000), torch.ones(7))
    assert features_for(encoded, "any kind", 320) is features and known_features(encoded) is features
    assert encoded["encoded_audio"].shape == (1, 16, 160) and len(encoded["encoded_audio_all_layers"]) == 1
    assert encoded["audio_samples"] == 5000 and emotion_for(encoded, 7).sum() == 7


@pytest.mark.parametrize("layer", [0, 6, 12])
def test_the_layer_that_the_pose_model_names_is_taken(layer: int) -> None:
    found = features_for(layers(), f"wav2vec2-base:{layer}", 2 * 768)
    assert found.kind == f"wav2vec2-base:{layer}" and found.rate_hz == 50 and len(found.level_db) == 0
    assert found.values.shape == (50, 768) and (found.values == layer).all()


def test_rows_beyond_the_sound_are_cut_as_whisper_hears_half_a_minute_of_silence() -> None:
    assert len(features_for(layers(33, 1500, 1280), "whisper-large-v3:32", 2 * 1280)) == 50


@pytest.mark.parametrize(
    ("encoded", "kind", "says"),
    [
        (layers(), "flashlips-mel-conv", "listens to 'flashlips-mel-conv' .128 .* states 0 to 12 of 768 numbers"),
        (layers(), "wav2vec2-large:24", "listens to 'wav2vec2-large:24' .128 .* of 768 numbers"),
        ({"audio_feature": 1, "fps": 30}, "wav2vec2-base:12", "got encoded audio that holds audio_feature, fps"),
        ({}, "wav2vec2-base:12", "holds nothing"),
    ],
)
def test_encoded_audio_of_another_kind_is_refused_with_both_kinds(encoded: dict, kind: str, says: str) -> None:
    with pytest.raises(FlashLipsError, match=says):
        features_for(encoded, kind, 256)


def test_encoded_audio_that_ends_early_or_holds_several_sounds_is_refused() -> None:
    with pytest.raises(FlashLipsError, match="ends after 0.98 s of 40.0 s"):
        features_for({**layers(), "audio_samples": 640_000}, "wav2vec2-base:12", 1536)
    several = {**layers(), "encoded_audio_all_layers": [torch.zeros(2, 49, 768)] * 13}
    with pytest.raises(FlashLipsError, match="holds 2 sounds"):
        features_for(several, "wav2vec2-base:12", 1536)
    with pytest.raises(FlashLipsError, match="state|layers of"):
        features_for(layers(count=12), "wav2vec2-base:12", 1536)


def test_emotion_is_used_where_the_model_takes_it(caplog) -> None:
    features = LogMelEncoder().encode(torch.zeros(640))
    without = encoded_audio(features, 640)
    moved = with_emotion(without, torch.ones(7))
    assert emotion_for(moved, 0) is None and not caplog.records
    assert emotion_for(without, 7) is None and "emotion" in caplog.text
    with pytest.raises(FlashLipsError, match="takes 5 emotion numbers, got 7"):
        emotion_for(moved, 5)


def test_folders_with_an_audio_classifier_are_told_from_others(tmp_path: Path) -> None:
    assert not is_classifier(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    for names, expected in ((["Wav2Vec2ForSequenceClassification"], True), (["Wav2Vec2Model"], False), (None, False)):
        (tmp_path / "config.json").write_text(json.dumps({"architectures": names}))
        assert is_classifier(tmp_path) is expected
    (tmp_path / "config.json").write_text("[]")
    assert not is_classifier(tmp_path)


def test_encoding_reports_progress_and_gives_the_same_rows() -> None:
    samples = torch.randn(48_000, generator=torch.Generator().manual_seed(0))
    encoder, done = load_audio_encoder("bundled", device="cpu"), []
    encoder.plan = replace(encoder.plan, hop=40)
    watched = encoder.encode(samples, lambda *step: done.append(step))
    stream = encoder.stream()
    parts = [stream.push(samples), stream.flush()]
    assert torch.equal(watched.values, torch.cat([part.values for part in parts]))
    assert len(done) > 2 and done[-1] == (48_000, 48_000) and done == sorted(done)


def test_images_are_read_like_the_video_that_they_come_from(tmp_path: Path) -> None:
    path = face_clip(tmp_path / "face.mp4")
    boxes = np.tile(np.array([20, 20, 172, 172], np.float32), (NUM_FRAMES, 1))
    present = np.arange(NUM_FRAMES) != 3
    track = FaceTrack(boxes, np.zeros((NUM_FRAMES, 5, 2), np.float32), present, SIDE, SIDE, Fraction(25))
    lipsync, seen = LipSync(device="cpu"), []
    of_video = lipsync.poses_from_video(path, track, show=seen.append)
    with av.open(str(path)) as source:
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)])
    images = torch.from_numpy(pictures).movedim(-1, 1).float() / 255
    of_images = poses_from_images(lipsync, images, Fraction(25), track, batch=3)
    assert len(of_video) == len(of_images) == NUM_FRAMES and seen
    assert (of_video.values - of_images.values).abs().max() < 0.25
    assert torch.allclose(of_images.values[3], (of_images.values[2] + of_images.values[4]) / 2, atol=1e-5)
    with pytest.raises(FlashLipsError, match="images run at 50 frames per second, their track at 25"):
        poses_from_images(lipsync, images, Fraction(50), track)


def test_a_track_that_outlasts_its_clip_is_refused(tmp_path: Path) -> None:
    path, count = face_clip(tmp_path / "face.mp4"), NUM_FRAMES + 4
    boxes, points = np.tile(np.array([20, 20, 172, 172], np.float32), (count, 1)), np.zeros((count, 5, 2), np.float32)
    track = FaceTrack(boxes, points, np.ones(count, bool), SIDE, SIDE, Fraction(25))
    with pytest.raises(FlashLipsError, match="face.mp4 has 8 frames, its track 12"):
        LipSync(device="cpu").poses_from_video(path, track)


# ---- in ComfyUI ------------------------------------------------------------------------------------------------------------

MODULE = '''
import torch


def core_encoder():
    """ComfyUI's own wav2vec 2.0 with two layers and random weights."""
    from comfy.audio_encoders.audio_encoders import AudioEncoderModel

    torch.manual_seed(0)
    config = {"model_type": "wav2vec2", "embed_dim": 48, "num_heads": 4, "num_layers": 2, "conv_norm": False,
              "conv_bias": False, "do_normalize": False, "do_stable_layer_norm": False}
    encoder = AudioEncoderModel(config)
    with torch.no_grad():
        for weight in encoder.model.parameters():
            weight.normal_(0, 0.05)
    return encoder


def ramp_masks(count=25):
    return torch.linspace(0, 1, count)[:, None, None].expand(count, 4, 6)
'''


def node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def face_clip(path: Path) -> Path:
    """The demo's face, small and short, 25 frames per second."""
    with av.open(str(DEMO / "face.mp4")) as source, av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=25, options={"crf": "10"})
        video.width, video.height, video.pix_fmt = SIDE, SIDE, "yuv420p"
        for _, frame in zip(range(NUM_FRAMES), source.decode(video=0)):  # noqa: B905
            picture = frame.to_ndarray(width=SIDE, height=SIDE, format="rgb24")
            output.mux(video.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        output.mux(video.encode())
    return path


def short_voice(path: Path) -> Path:
    """The first second of the demo's voice."""
    with wave.open(str(DEMO / "voice.wav")) as source, wave.open(str(path), "wb") as output:
        output.setparams(source.getparams())
        output.writeframes(source.readframes(SECONDS * source.getframerate()))
    return path


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "makers.py"
    path.write_text(MODULE)
    return path


@pytest.fixture
def graph(engine) -> dict:
    """A voice to poses by way of every node in between; a test adds to it."""
    short_voice(engine.base / "input" / "voice.wav")
    return {
        "audio": node("LoadAudio", audio="voice.wav"),
        "encoder": node("FlashLipsLoadAudioEncoder"),
        "model": node("FlashLipsLoadPoseModel"),
        "features": node("FlashLipsEncodeAudio", audio_encoder=["encoder", 0], audio=["audio", 0]),
        "poses": node("FlashLipsSamplePoses", pose_model=["model", 0], features=["features", 0]),
    }


def kept(engine, prompt: dict, *names: str) -> list:
    """The first output of each of these nodes."""
    run = engine.run(prompt, names)
    assert run.is_success, run.errors
    return [run.outputs[name][0] for name in names]


def track_of(made) -> LipPoses:
    """Poses that came back from the engine."""
    assert made.type == "LipPoses"
    return LipPoses(made.values, made.fps)


def edit(graph: dict, **inputs: object) -> dict:
    return {**graph, "edited": node("FlashLipsEditPoses", poses=["poses", 0], **inputs)}


@pytest.mark.comfy
def test_the_nodes_give_the_poses_of_the_core(engine, graph) -> None:
    graph["loose"] = node(
        "FlashLipsSamplePoses", pose_model=["model", 0], features=["features", 0], seed=5, steps=2, solver="heun", guidance=1.5,
        temperature=0.5, fps=29.97, close_in_silence=False,
    )  # fmt: skip
    encoded, made, loose = kept(engine, graph, "features", "poses", "loose")
    samples = to_mono_16k(load_audio(engine.base / "input" / "voice.wav"))
    features, model = load_audio_encoder("bundled", device="cpu").encode(samples), load_network("pose-model")
    assert torch.allclose(encoded["flashlips"].values, features.values, atol=1e-4)
    assert encoded["audio_samples"] == len(samples) and encoded["encoded_audio"].shape == (1, 50, 48)
    calm = silence_gate(sample_poses(model, features), features, model.rest_pose)
    assert made.fps == 25 and torch.allclose(made.values, calm.values, atol=1e-3)
    settings = SamplerSettings(2, "heun", 1.5, 0.5, 5)
    wild = tracks.resample(sample_poses(model, features, None, settings), Fraction(30000, 1001))
    assert loose.fps == Fraction(30000, 1001) and torch.allclose(loose.values, wild.values, atol=1e-3)


@pytest.mark.comfy
def test_core_encodes_with_our_encoder_and_a_new_seed_hears_nothing_again(engine, graph) -> None:
    graph["by core"] = node("AudioEncoderEncode", audio_encoder=["encoder", 0], audio=["audio", 0])
    graph["again"] = node("FlashLipsSamplePoses", pose_model=["model", 0], features=["by core", 0])
    first, again = kept(engine, graph, "poses", "again")
    assert torch.allclose(first.values, again.values, atol=1e-4)
    graph["poses"]["inputs"]["seed"] = 1
    run = engine.run(graph, "poses")
    assert "features" in run.cached and not torch.allclose(run.outputs["poses"][0].values, first.values, atol=1e-2)


@pytest.mark.comfy
@pytest.mark.parametrize("by", ["FlashLipsEncodeAudio", "AudioEncoderEncode"])
def test_an_encoder_of_comfyui_feeds_the_pose_model_that_listens_to_its_layer(engine, graph, code, by: str) -> None:
    config = PoseTransformerConfig("wav2vec2-tiny:1", 2 * 48, width=24, depth=1, num_heads=2)
    checkpoint.save(
        PoseTransformer(config), engine.base / "models" / "flashlips" / "tiny.safetensors", "pose-model", {}, torch.float32
    )
    graph["encoder"] = node("TestMake", code=f"{code}:core_encoder")
    graph["features"]["class_type"] = by
    graph["model"]["inputs"]["name"] = "tiny.safetensors"
    run = engine.run(graph, ["features", "poses"])
    assert "flashlips" not in run.outputs["features"][0] and len(run.outputs["poses"][0].values) == 25, run.errors
    assert "do not say how loud the sound is" in run.said["poses"]
    graph["model"]["inputs"]["name"] = "bundled"
    refusal = engine.run(graph, "poses").errors["poses"]
    assert "listens to 'flashlips-mel-conv-3' (48 numbers a row)" in refusal and "states 0 to 2 of 48 numbers" in refusal


@pytest.mark.comfy
def test_features_of_another_encoder_are_refused_with_both_names(engine, graph) -> None:
    graph["encoder"]["inputs"]["name"] = "log-mel"
    refusal = engine.run(graph, "poses").errors["poses"]
    assert "listens to 'flashlips-mel-conv-3', got 'log-mel'" in refusal


@pytest.mark.comfy
def test_a_performance_becomes_poses_and_tells_the_pose_model_who_speaks(engine, graph) -> None:
    face_clip(engine.base / "input" / "face.mp4")
    graph |= {
        "video": node("LoadVideo", file="face.mp4"),
        "images": node("GetVideoComponents", video=["video", 0]),
        "lips": node("FlashLipsLoadLipEncoder"),
        "track": node("FlashLipsTrackFace", video=["video", 0], face="largest"),
        "of video": node("FlashLipsEncodePoses", lip_encoder=["lips", 0], video=["video", 0]),
        "tracked": node("FlashLipsEncodePoses", lip_encoder=["lips", 0], video=["video", 0], track=["track", 0]),
        "of images": node("FlashLipsEncodePoses", lip_encoder=["lips", 0], images=["images", 0], track=["track", 0], fps=23.976),
    }
    graph["as person"] = node(
        "FlashLipsSamplePoses", pose_model=["model", 0], features=["features", 0], source_poses=["tracked", 0]
    )
    of_video, tracked, of_images, as_person, plain = kept(engine, graph, "of video", "tracked", "of images", "as person", "poses")
    assert of_video.fps == 25 and torch.equal(of_video.values, tracked.values) and len(tracked.values) == NUM_FRAMES
    assert of_images.fps == Fraction(24000, 1001) and (of_images.values - tracked.values).abs().max() < 0.25
    assert not torch.allclose(as_person.values, plain.values, atol=1e-2)
    cases = {
        "got neither": node("FlashLipsEncodePoses", lip_encoder=["lips", 0]),
        "got both": node("FlashLipsEncodePoses", lip_encoder=["lips", 0], video=["video", 0], images=["images", 0]),
    }
    for words, case in cases.items():
        assert words in engine.run({**graph, "case": case}, "case").errors["case"]


@pytest.mark.comfy
def test_a_cancelled_reading_of_a_face_can_be_repeated(engine, graph) -> None:
    face_clip(engine.base / "input" / "face.mp4")
    graph = {
        "video": node("LoadVideo", file="face.mp4"),
        "lips": node("FlashLipsLoadLipEncoder"),
        "read": node("FlashLipsEncodePoses", lip_encoder=["lips", 0], video=["video", 0]),
    }
    assert engine.run(graph, "read", interrupt_at=("progress_state", 4)).is_interrupted
    (poses,) = kept(engine, graph, "read")
    assert len(poses.values) == NUM_FRAMES


@pytest.mark.comfy
def test_sliders_and_the_list_of_operations_are_applied_in_order(engine, graph, code) -> None:
    graph |= {
        "other": node("FlashLipsSamplePoses", pose_model=["model", 0], features=["features", 0], seed=9, temperature=1.0, fps=50),
        "mask": node("TestMake", code=f"{code}:ramp_masks"),
    }
    text = json.dumps([{"op": "hold", "start": 3, "stop": 8, "fade": 2}])
    sliders = {"expression_gain": 1.5, "mouth_gain": 0.5, "smoothing_ms": 40, "offset_ms": 80, "mix": 0.5}
    graph = edit(graph, other=["other", 0], mask=["mask", 0], operations=text, **sliders)
    made, other, edited = map(track_of, kept(engine, graph, "poses", "other", "edited"))
    rest = load_network("pose-model").rest_pose
    around = Surroundings(rest, other, mask=torch.linspace(0, 1, 25))
    steps = [Mix(amount=0.5, mask=True), Gain(expression=1.5, mouth=0.5), Smooth(deviation=1.0), Shift(frames=2.0)]
    expected = apply_operations(made, [*steps, Hold(start=3, stop=8, fade=2)], around)
    assert edited.fps == 25 and torch.allclose(edited.values, expected.values, atol=1e-4)


@pytest.mark.comfy
def test_silence_closes_the_lips_where_features_are_connected(engine, graph) -> None:
    graph |= {
        "quiet": node("EmptyAudio", duration=1.0, sample_rate=16_000, channels=1),
        "silence": node("FlashLipsEncodeAudio", audio_encoder=["encoder", 0], audio=["quiet", 0]),
    }
    untouched, made = kept(engine, edit(graph), "edited", "poses")
    assert torch.equal(untouched.values, made.values)
    (closed,) = kept(engine, edit(graph, features=["silence", 0]), "edited")
    assert torch.allclose(closed.values, load_network("pose-model").rest_pose.expand(25, 12), atol=1e-5)
    (left,) = kept(engine, edit(graph, features=["silence", 0], close_in_silence=False), "edited")
    assert torch.equal(left.values, made.values)


def timeline_of(engine, run, name: str = "edited") -> dict:
    """What the node sent for its timeline."""
    (shown,) = run.ui[name]["flashlips_timeline"]
    return json.loads((engine.base / "temp" / shown["filename"]).read_text(encoding="utf-8"))


def sent_poses(file: dict) -> torch.Tensor:
    """The track before the operations, (T, 12)."""
    values = np.frombuffer(base64.b64decode(file["poses"]), "<i2").reshape(-1, 12)
    return torch.from_numpy(values / 32767 * file["scale"]).float()


@pytest.mark.comfy
def test_the_timeline_gets_the_track_after_the_sliders_and_before_the_operations(engine, graph) -> None:
    drawn = [
        {"op": "draw", "curve": "opening", "points": [[5, 0.2]], "start": 5, "stop": 9},
        {"op": "copy", "source": 5, "start": 15},
    ]
    graph = edit(graph, operations=json.dumps(drawn), expression_gain=1.5, audio=["audio", 0])
    run = engine.run(graph, ("poses", "edited"))
    assert run.is_success, run.errors
    made, edited = track_of(run.outputs["poses"][0]), track_of(run.outputs["edited"][0])
    rest = load_network("pose-model").rest_pose
    around, file = Surroundings(rest), timeline_of(engine, run)
    slid = apply_operations(made, [Gain(expression=1.5)], around)
    assert torch.allclose(sent_poses(file), slid.values, atol=1e-3)
    assert torch.allclose(edited.values, apply_operations(slid, from_json(json.dumps(drawn)), around).values, atol=1e-4)
    assert file["version"] == 1 and file["fps"] == [25, 1] and file["gate"] and not file["is_gated"] and file["level_hz"] == 100
    with wave.open(str(engine.base / "temp" / file["sound"]["filename"])) as sound:
        assert (sound.getframerate(), sound.getnchannels(), sound.getnframes()) == (16_000, 1, 16_000 * SECONDS)
    again = engine.run(
        {**graph, "edited": {**graph["edited"], "inputs": {**graph["edited"]["inputs"], "operations": "[]"}}}, "edited"
    )
    assert again.ui["edited"] == run.ui["edited"]  # the same track is the same file


@pytest.mark.comfy
def test_a_cached_track_is_sent_to_the_timeline_again(engine, graph) -> None:
    graph = edit(graph) | {"drawn": node("FlashLipsPreviewPoses", poses=["edited", 0])}
    first, again = engine.run(graph), engine.run(graph)
    assert first.is_success and again.is_success
    assert "edited" in again.cached and again.ui["edited"] == first.ui["edited"]


@pytest.mark.comfy
def test_features_alone_give_the_timeline_speech_and_nothing_gives_curves(engine, graph) -> None:
    for inputs, has_sound in (({"features": ["features", 0]}, True), ({}, False)):
        run = engine.run(edit(graph, **inputs), "edited")
        assert run.is_success, run.errors
        file = timeline_of(engine, run)
        assert len(sent_poses(file)) == 25 and file["sound"] is None
        assert file["is_gated"] is has_sound and (file["level"] is not None) is has_sound


@pytest.mark.comfy
def test_edits_that_cannot_work_are_said_in_the_nodes_error_box(engine, graph) -> None:
    cases = {
        "Operation 1: 'op' must be one of": {"operations": '[{"op": "zoom"}]'},
        "The operations are no JSON": {"operations": "gain"},
        "Operation 1 (hold): 'start' is frame 90": {"operations": '[{"op": "hold", "start": 90}]'},
        "Slider 1 (mix): There is no other track": {"mix": 0.5},
        "Operation 1 (gate): There is no sound": {"operations": '[{"op": "gate"}]'},
        "Operation 1 (copy): 'source' is 25, but the track has frames 0 to 24": {"operations": '[{"op": "copy", "source": 25}]'},
    }
    for words, inputs in cases.items():
        assert words in engine.run(edit(graph, **inputs), "edited").errors["edited"]


@pytest.mark.comfy
def test_the_picture_is_shown_on_the_node(engine, graph) -> None:
    graph |= {
        "lips": node("FlashLipsLoadLipEncoder"),
        "bare": node("FlashLipsPreviewPoses", poses=["poses", 0]),
        "full": node(
            "FlashLipsPreviewPoses", poses=["poses", 0], other=["poses", 0], audio=["audio", 0], lip_encoder=["lips", 0]
        ),
    }
    run = engine.run(graph, ("bare", "full"))
    assert run.is_success, run.errors
    bare, full = run.outputs["bare"][0], run.outputs["full"][0]
    assert bare.shape == full.shape == (1, 512, 1024, 3) and 0 <= bare.min() and bare.max() <= 1
    assert ((bare - full).abs() > 0.02).any(-1).float().mean() > 0.02
    for name in ("bare", "full"):
        (shown,) = run.ui[name]["images"]
        assert (engine.base / "temp" / shown["subfolder"] / shown["filename"]).is_file()


@pytest.mark.comfy
@pytest.mark.parametrize("name", ["EncodeAudio", "SamplePoses", "EncodePoses", "EditPoses", "PreviewPoses"])
def test_every_widget_has_a_tooltip_and_every_node_a_description(engine, name: str) -> None:
    info = engine.node_info(f"FlashLips{name}")
    inputs = info["input"]["required"] | info["input"].get("optional", {})
    assert info["category"] == "FlashLips/poses" and len(info["description"]) > 40
    assert all(len(options["tooltip"]) > 15 for _, options in inputs.values())
