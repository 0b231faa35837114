"""Lip Sync, Lip-Sync Video, Lip-Sync Images, Edit Lip Latents in the real ComfyUI."""

from __future__ import annotations

import shutil
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from face_clip import DEMO, NUM_EMPTY, NUM_SEEN, SIDE, face_clip
from toy_dubs import CROP_PX

from flashlips_core import checkpoint
from flashlips_core.codec import load_codec
from flashlips_core.loading import CODEC_FILE, load_part
from flashlips_core.media import load_audio, probe, read_frames
from flashlips_core.pipeline import PROVENANCE

VOICE = DEMO.with_name("voice.wav")


def node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


@pytest.fixture
def graph(engine, model_folder) -> dict:
    """A clip of NUM_SEEN frames with a face and NUM_EMPTY without, its track, a voice's poses, and toy networks to edit with."""
    face_clip(engine.base / "input" / "face.mp4")
    shutil.copytree(model_folder, engine.base / "models" / "flashlips" / "toy", dirs_exist_ok=True)
    return {
        "video": node("FlashLipsLoadVideo", path="face.mp4"),
        "voice": node("FlashLipsLoadVideo", path=str(VOICE)),
        "track": node("FlashLipsTrackFace", video=["video", 0], face="largest"),
        "listener": node("FlashLipsLoadAudioEncoder"),
        "features": node("FlashLipsEncodeAudio", audio_encoder=["listener", 0], audio=["voice", 1]),
        "pose_model": node("FlashLipsLoadPoseModel"),
        "poses": node("FlashLipsSamplePoses", pose_model=["pose_model", 0], features=["features", 0]),
        "editor": node("FlashLipsLoadEditor", name="toy/editor.safetensors"),
        "codec": node("FlashLipsLoadCodec", name="toy/codec.safetensors"),
        "reader": node("FlashLipsLoadLipEncoder", name="toy/lip-encoder.safetensors"),
    }


def edit_node(**changes: object) -> dict:
    """Lip-Sync Video with what the graph offers."""
    wires = {name: [name, 0] for name in ("video", "track", "poses", "editor")}
    return node("FlashLipsLipSyncVideo", **wires, vae=["codec", 0], lip_encoder=["reader", 0], **changes)


def temporary(engine) -> list[Path]:
    return sorted((engine.base / "temp").glob("flashlips*"))


def planes(path: str | Path) -> list[np.ndarray]:
    return [frame.planes[0] for frame in read_frames(path)]


@pytest.mark.comfy
def test_a_video_and_a_voice_are_all_that_the_front_door_needs(engine, graph) -> None:
    prompt = {name: graph[name] for name in ("video", "voice")}
    prompt["sync"] = node("FlashLipsLipSync", video=["video", 0], audio=["voice", 1], length="cut")
    prompt["save"] = node("FlashLipsSaveVideo", video=["sync", 0])
    run = engine.run(prompt, "sync")
    assert run.is_success, run.errors
    source, [made] = engine.base / "input" / "face.mp4", run.outputs["sync"]
    assert Path(made.source) in temporary(engine)
    result = probe(made.source)
    assert (result.num_frames, result.fps, result.width) == (NUM_SEEN + NUM_EMPTY, Fraction(25), SIDE)
    assert result.audio_rate == load_audio(VOICE).sample_rate
    assert abs(float(load_audio(made.source).duration) - 0.56) < 0.1
    with av.open(made.source) as media:
        assert media.metadata["comment"] == PROVENANCE["comment"]
    assert any(np.abs(a.astype(int) - b).max() > 20 for a, b in zip(planes(source), planes(made.source), strict=True))
    assert "progress" in run.names
    first, notice = run.said["sync"].split("\n")
    assert first == f"{NUM_SEEN + NUM_EMPTY} frames, {NUM_EMPTY} without a face, voice 4.5 s"
    assert notice == "Voice cut from 4.5 s to 0.6 s, with the picture; 'length' auto keeps it."
    texts = [data["text"] for name, data in run.events if name == "progress_text"]
    for stage in ("Loading networks", "Finding the face", "Choosing references", "Making the lip motion", "Editing frames"):
        assert any(text.startswith(stage) for text in texts), stage
    assert "save" not in run.previewed  # the front end would take the picture for the video


@pytest.mark.comfy
def test_the_front_door_takes_any_lip_editor(engine, graph) -> None:
    prompt = {name: graph[name] for name in ("video", "voice")}
    made = {}
    for name in ("bundled-fast", "toy/editor.safetensors"):
        prompt["sync"] = node("FlashLipsLipSync", video=["video", 0], audio=["voice", 1], editor=name, length="cut")
        run = engine.run(prompt, "sync")
        assert run.is_success, run.errors
        made[name] = np.stack(planes(run.outputs["sync"][0].source)[:NUM_SEEN])
    first, second = made.values()
    assert not np.array_equal(first, second)


@pytest.mark.comfy
def test_the_front_door_takes_the_fine_tuned_codec_that_the_editor_learnt_through(engine, graph, request) -> None:
    folder = engine.base / "models" / "flashlips"
    for name in ("person", "person_codec"):  # the engine serves other tests
        request.addfinalizer(partial((folder / f"{name}.safetensors").unlink, missing_ok=True))
    editor, codec = load_part("editor", "bundled-fast"), load_codec("bundled-fast")
    notes = editor.notes | {"codec": "bundled-fast", CODEC_FILE: "person_codec.safetensors"}
    checkpoint.save(editor.network, folder / "person.safetensors", "editor", notes)
    with torch.no_grad():
        [part for part in codec.network.decoder.modules() if isinstance(part, torch.nn.Conv2d)][-1].bias += 0.5  # a lighter face
    prompt = {name: graph[name] for name in ("video", "voice")}
    choices = {"editor": "person.safetensors", "start": "frame"}  # a difference of two decodes would not be lighter
    prompt["sync"] = node("FlashLipsLipSync", video=["video", 0], audio=["voice", 1], **choices)
    brightness = []
    for is_there in (True, False):
        file = folder / "person_codec.safetensors"
        if is_there:
            checkpoint.save(codec.network, file, "codec", {"latents": "bundled-fast"})
        else:
            file.unlink()
        run = engine.run(prompt, "sync")
        assert run.is_success and "sync" not in run.cached, run.errors
        brightness.append(np.mean(planes(run.outputs["sync"][0].source)[:NUM_SEEN]))
    assert brightness[0] > brightness[1] + 1


@pytest.mark.comfy
def test_latents_of_another_crop_size_are_refused_with_the_size_to_choose(engine, graph) -> None:
    prompt = {name: graph[name] for name in ("video", "track", "poses", "pose_model", "features", "listener", "voice")}
    prompt |= {
        "parts": node("GetVideoComponents", video=["video", 0]), "codec": node("FlashLipsLoadCodec"),
        "crops": node("FlashLipsCropFaces", images=["parts", 0], track=["track", 0], size=256),
        "latents": node("VAEEncode", pixels=["crops", 0], vae=["codec", 0]), "editor": node("FlashLipsLoadEditor"),
        "edit": node(
            "FlashLipsEditLatents", editor=["editor", 0], target=["latents", 0], references=["latents", 0], poses=["poses", 0]
        ),
    }  # fmt: skip
    words = "These are latents of 256 px crops, and the editor 'bundled' was trained on 384 px; set Crop Faces to 384"
    assert words in engine.run(prompt, "edit").errors["edit"]


@pytest.mark.comfy
def test_length_and_tag_are_the_users_choice(engine, graph) -> None:
    prompt = {name: graph[name] for name in ("video", "voice")}
    prompt["sound"] = node("TrimAudioDuration", audio=["voice", 1], start_index=0.0, duration=0.8)
    choices = {"length": "auto", "tag": False, "crf": 30, "lip_motion": 0.0, "close_in_silence": False, "seed": 7}
    prompt["sync"] = node("FlashLipsLipSync", video=["video", 0], audio=["sound", 0], face="left", **choices)
    run = engine.run(prompt, "sync")
    assert run.is_success, run.errors
    [made] = run.outputs["sync"]
    assert probe(made.source).num_frames == 20  # as long as the voice
    assert "Picture goes back and forth from 0.6 s to 0.8 s" in run.said["sync"]
    with av.open(made.source) as media:
        assert "comment" not in media.metadata


@pytest.mark.comfy
def test_the_whole_graph_changes_the_mouth_and_nothing_else(engine, graph) -> None:
    graph["edit"] = edit_node(crf=0)
    run = engine.run(graph, "edit")
    assert run.is_success, run.errors
    [made] = run.outputs["edit"]
    before, after = planes(engine.base / "input" / "face.mp4"), planes(made.source)
    assert len(before) == len(after) == NUM_SEEN + NUM_EMPTY
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        changed = old != new
        assert changed.any() == (index < NUM_SEEN)
        assert not changed[: SIDE // 3].any()  # the upper face
    assert probe(made.source).audio_rate is None  # the clip had no sound, and no other was given


@pytest.mark.comfy
def test_the_start_is_the_users_choice_and_references_of_ones_own_leave_it(engine, graph) -> None:
    graph |= {
        "parts": node("GetVideoComponents", video=["video", 0]),
        "crops": node("FlashLipsCropFaces", images=["parts", 0], track=["track", 0], size=CROP_PX),
        "shown": node("ImageFromBatch", image=["crops", 0], batch_index=0, length=3),
    }
    made = {}
    for start in ("retrieved", "frame"):
        for kind, wires in (("own", {"references": ["shown", 0]}), ("chosen", {})):
            run = engine.run(graph | {"edit": edit_node(crf=0, start=start, **wires)}, "edit")
            assert run.is_success, run.errors
            made[start, kind] = np.stack(planes(run.outputs["edit"][0].source)[:NUM_SEEN]).astype(int)
        wires = {name: [name, 0] for name in ("track", "poses", "editor")} | {"images": ["parts", 0], "vae": ["codec", 0]}
        images = node("FlashLipsLipSyncImages", **wires, lip_encoder=["reader", 0], start=start)
        run = engine.run(graph | {"images": images}, "images")
        assert run.is_success, run.errors
        made[start, "images"] = run.outputs["images"][0].numpy()
    for kind in ("own", "chosen", "images"):
        assert not np.array_equal(made["retrieved", kind], made["frame", kind])
    assert not np.array_equal(made["frame", "own"], made["frame", "chosen"])  # retrieved mouths may need no reference


@pytest.mark.comfy
def test_a_new_take_does_not_track_or_listen_again(engine, graph) -> None:
    graph["edit"] = edit_node(audio=["voice", 1], length="cut")
    assert engine.run(graph, "edit").is_success
    graph["poses"]["inputs"]["seed"] = 1
    run = engine.run(graph, "edit")
    assert run.is_success and {"track", "features", "editor", "codec"} <= run.cached and "poses" not in run.cached


@pytest.mark.comfy
def test_images_and_latents_give_the_same_mouth_on_their_own_ways(engine, graph) -> None:
    sizes = {"size": CROP_PX}
    graph |= {
        "parts": node("GetVideoComponents", video=["video", 0]),
        "crops": node("FlashLipsCropFaces", images=["parts", 0], track=["track", 0], **sizes),
        "shown": node("ImageFromBatch", image=["crops", 0], batch_index=0, length=4),
        "edit": node("FlashLipsLipSyncImages", images=["parts", 0], track=["track", 0], poses=["poses", 0],
                     editor=["editor", 0], vae=["codec", 0], references=["shown", 0]),
        "target": node("VAEEncode", pixels=["crops", 0], vae=["codec", 0]),
        "seen": node("VAEEncode", pixels=["shown", 0], vae=["codec", 0]),
        "shown_poses": node("FlashLipsEncodePoses", images=["shown", 0], lip_encoder=["bundled", 0]),
        "bundled": node("FlashLipsLoadLipEncoder"),
        "latents": node("FlashLipsEditLatents", editor=["editor", 0], target=["target", 0], references=["seen", 0],
                        poses=["poses", 0]),
        "pixels": node("VAEDecode", samples=["latents", 0], vae=["codec", 0]),
    }  # fmt: skip
    run = engine.run(graph, ("parts", "edit", "target", "latents", "pixels"))
    assert run.is_success, run.errors
    images, edited = run.outputs["parts"][0], run.outputs["edit"][0]
    assert edited.shape == images.shape and torch.equal(edited[NUM_SEEN:], images[NUM_SEEN:])
    unchanged = (edited == images).all(-1)[:NUM_SEEN]
    assert 0.5 < unchanged.float().mean() < 1 and unchanged[:, : SIDE // 3].all()
    target, latents = run.outputs["target"][0]["samples"], run.outputs["latents"][0]["samples"]
    assert latents.shape == target.shape == (NUM_SEEN + NUM_EMPTY, 4, CROP_PX // 8, CROP_PX // 8)
    assert torch.allclose(latents[:, :, 0], target[:, :, 0], atol=1e-4) and not torch.allclose(latents, target, atol=0.1)
    assert run.outputs["pixels"][0].shape == (NUM_SEEN + NUM_EMPTY, CROP_PX, CROP_PX, 3)


@pytest.mark.comfy
def test_two_speakers_are_two_edits_in_a_row(engine, graph) -> None:
    face_clip(engine.base / "input" / "two.mp4", "ft", num_empty=0)
    graph["video"] = node("FlashLipsLoadVideo", path="two.mp4")
    graph["track"]["inputs"]["face"] = "left"
    graph["second_track"] = node("FlashLipsTrackFace", video=["video", 0], face="right")
    graph["first"] = edit_node(crf=0)
    graph["second"] = edit_node(crf=0)
    graph["second"]["inputs"] |= {"video": ["first", 0], "track": ["second_track", 0]}
    run = engine.run(graph, ("first", "second"))
    assert run.is_success, run.errors
    made = [run.outputs[name][0].source for name in ("first", "second")]
    source, first, second = (planes(path) for path in (engine.base / "input" / "two.mp4", *made))
    for old, once, twice in zip(source, first, second, strict=True):
        assert (old != once)[:, :SIDE].any() and not (old != once)[:, SIDE:].any()
        assert (once != twice)[:, SIDE:].any() and not (once != twice)[:, :SIDE].any()


@pytest.mark.comfy
def test_wrong_wires_get_a_sentence(engine, graph, tmp_path) -> None:
    def said(name: str, **nodes: dict) -> str:
        return engine.run(graph | nodes, name).errors[name]

    before = temporary(engine)
    face_clip(engine.base / "input" / "other.mp4", num_empty=20)
    face_clip(engine.base / "input" / "wide.mp4", "fe")
    for file, words in (("other.mp4", "The track has 30 frames, face.mp4 has 14"), ("wide.mp4", "of a clip of 384x192 pixels")):
        other = node("FlashLipsLoadVideo", path=file)
        track = node("FlashLipsTrackFace", video=["other", 0], face="largest")
        assert words in said("edit", other=other, track=track, edit=edit_node())
    small = node("EmptyImage", width=32, height=32, batch_size=2, color=0)
    assert "32x32 pixels, the editor sees crops of 64x64" in said("edit", small=small, edit=edit_node(references=["small", 0]))
    (tmp_path / "code.py").write_text("def nothing():\n    return None\n")
    nothing = node("TestMake", code=f"{tmp_path / 'code.py'}:nothing")
    assert "There is no codec; connect Load Codec" in said("edit", codec=nothing, edit=edit_node())
    silent = node("EmptyAudio", duration=0.0, sample_rate=16_000, channels=1)
    assert "audio has zero length" in said("edit", silent=silent, edit=edit_node(audio=["silent", 0]))
    flat = node("EmptyLatentImage", width=64, height=64, batch_size=200)
    large = node("EmptyLatentImage", width=128, height=128, batch_size=2)
    latents = node("FlashLipsEditLatents", editor=["editor", 0], target=["flat", 0], references=["large", 0], poses=["poses", 0])
    assert "references are 16x16 latent cells, the target 8x8" in said("latents", flat=flat, large=large, latents=latents)
    blank = {"grey": node("EmptyImage", width=64, height=64, batch_size=5, color=0x808080)}
    blank["blank"] = node("CreateVideo", images=["grey", 0], fps=25.0)
    sync = node("FlashLipsLipSync", video=["blank", 0], audio=["voice", 1])
    assert "No face in any of the" in said("sync", **blank, sync=sync)
    assert temporary(engine) == before and not list((engine.base / "temp").glob("*.part"))


@pytest.mark.comfy
@pytest.mark.parametrize("name", ["sync", "edit"])
def test_cancel_leaves_no_file_and_the_next_run_works(engine, graph, name) -> None:
    graph["edit"] = edit_node()
    graph["sync"] = node("FlashLipsLipSync", video=["video", 0], audio=["voice", 1], length="cut")
    before = temporary(engine)
    for event in (1, 3):
        run = engine.run(graph, name, interrupt_at=("progress", event))
        assert run.is_interrupted and not run.errors and any(text.startswith("Cancelled.") for text in run.said.values())
    assert temporary(engine) == before
    run = engine.run(graph, name)
    assert run.is_success and probe(run.outputs[name][0].source).num_frames == NUM_SEEN + NUM_EMPTY


DEFAULTS = """
import inspect

import nodes


def differences():
    found = {}
    for name, node in nodes.NODE_CLASS_MAPPINGS.items():
        if not name.startswith("FlashLips"):
            continue
        schema, parameters = node.GET_SCHEMA(), inspect.signature(node.execute).parameters
        wrong = [] if list(parameters) == [i.id for i in schema.inputs] else ["order of " + ", ".join(parameters)]
        for given in schema.inputs:
            default = parameters[given.id].default
            is_free = default is not inspect.Parameter.empty
            if given.optional and not is_free or is_free and default != getattr(given, "default", None):
                wrong.append(given.id)
            if not given.tooltip:
                wrong.append("tooltip of " + given.id)
        found[name] = wrong
    return found
"""


@pytest.mark.comfy
def test_a_prompt_without_optional_inputs_means_the_defaults_that_the_widgets_show(engine, tmp_path) -> None:
    (tmp_path / "code.py").write_text(DEFAULTS)
    found = engine.call(f"{tmp_path / 'code.py'}:differences")
    assert len(found) >= 20 and {name: wrong for name, wrong in found.items() if wrong} == {}
