"""Track Face, Preview Track, Crop Faces and Paste Faces: the pictures in the core, the nodes in the real ComfyUI."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from face_clip import NUM_EMPTY, NUM_SEEN, SIDE, face_clip

from flashlips_core.drawings.sheets import spread
from flashlips_core.drawings.track import GROUND, LOST, PANEL, SEEN, SQUARE, pick_pictures, presence, track_sheet
from flashlips_core.media import read_frames
from flashlips_core.turned import Square
from flashlips_core.types import FaceTrack, FlashLipsError


def make_track(present: np.ndarray, width: int = 640, height: int = 360) -> FaceTrack:
    count = len(present)
    boxes = np.tile(np.array([200, 60, 440, 300], np.float32), (count, 1))
    points = np.tile(np.array([[280, 150], [360, 150], [320, 190], [290, 220], [350, 220]], np.float32), (count, 1, 1))
    return FaceTrack(boxes, points, present, width, height, Fraction(25))


def has_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((picture == colour).all(-1).any())


# ---- the sheet -------------------------------------------------------------------------------------------------------------


def test_the_sheet_shows_square_points_and_presence() -> None:
    seen = track_sheet(make_track(np.ones(50, bool)), spread(50, 6))
    assert seen.dtype == np.uint8 and seen.ndim == 3 and (seen[0, 0] == GROUND).all()
    assert has_colour(seen, SQUARE) and has_colour(seen, SEEN) and has_colour(seen, PANEL)
    lost = track_sheet(make_track(np.zeros(50, bool)), spread(50, 6))
    assert not has_colour(lost, SQUARE) and has_colour(lost, LOST)
    assert lost.shape == seen.shape


@pytest.mark.parametrize(("size", "count"), [((1920, 1080), 12), ((64, 48), 1), ((720, 1280), 60), ((4096, 64), 3)])
def test_a_sheet_of_any_shape_and_count_holds_every_frame(size: tuple[int, int], count: int) -> None:
    track = make_track(np.ones(100, bool), *size)
    sheet = track_sheet(track, spread(100, count))
    assert 300 < sheet.shape[0] * sheet.shape[1] ** 0.5 and max(sheet.shape) < 5000


def test_a_single_lost_frame_shows_in_the_strip_of_a_long_clip() -> None:
    present = np.ones(100_000, bool)
    present[77_777] = False
    columns = presence(present, 1300)
    assert np.flatnonzero(~columns).tolist() == [77_777 * 1300 // 100_000]
    assert presence(np.array([True, False]), 10).tolist() == [True] * 5 + [False] * 5


def test_pictures_are_picked_in_one_pass_and_only_of_the_tracked_clip(plain_clip: Path) -> None:
    track, done = make_track(np.ones(25, bool), 64, 48), []
    pictures = pick_pictures(read_frames(plain_clip), track, [3, 20], lambda *step: done.append(step))
    assert sorted(pictures) == [3, 20] and pictures[3].shape == (48, 64, 3) and done[-1] == (21, 21)
    with pytest.raises(FlashLipsError, match="clip of 640x360 pixels, this one has 64x48"):
        pick_pictures(read_frames(plain_clip), make_track(np.ones(25, bool)), [3])
    with pytest.raises(FlashLipsError, match="clip has 25 frames, the track 40"):
        pick_pictures(read_frames(plain_clip), make_track(np.ones(40, bool), 64, 48), [3, 38])


# ---- in ComfyUI ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def graph(engine) -> dict:
    """Load a clip, track it, and take it apart into images; a test adds to it."""
    face_clip(engine.base / "input" / "face.mp4")
    return {
        "video": node("LoadVideo", file="face.mp4"),
        "parts": node("GetVideoComponents", video=["video", 0]),
        "track": node("FlashLipsTrackFace", video=["video", 0], face="largest"),
    }


def node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def kept(engine, prompt: dict, *names: str) -> list[list]:
    """The outputs of these nodes."""
    run = engine.run(prompt, names)
    assert run.is_success, run.errors
    return [run.outputs[name] for name in names]


def refused(engine, prompt: dict, name: str) -> str:
    """What this node's error box says."""
    return engine.run(prompt, name).errors[name]


@pytest.mark.comfy
def test_a_video_and_its_images_give_the_same_track(engine, graph) -> None:
    graph["of images"] = node("FlashLipsTrackFace", images=["parts", 0], face="largest", fps=29.97)
    (track,), (of_images,) = kept(engine, graph, "track", "of images")
    assert track.type == of_images.type == "FaceTrack"
    for made, fps in ((track, Fraction(25)), (of_images, Fraction(30000, 1001))):
        assert made.fps == fps and (made.width, made.height) == (SIDE, SIDE)
    present = np.array([True] * NUM_SEEN + [False] * NUM_EMPTY)
    assert track.present.tolist() == of_images.present.tolist() == present.tolist()
    assert np.abs(track.boxes - of_images.boxes).max() < 0.05 * SIDE


@pytest.mark.comfy
def test_the_face_is_chosen_by_side_index_or_reference(engine) -> None:
    face_clip(engine.base / "input" / "two.mp4", "ft", 0)
    face_clip(engine.base / "input" / "tinted.mp4", "t", 0)
    prompt = {
        "video": node("LoadVideo", file="two.mp4"),
        "other video": node("LoadVideo", file="tinted.mp4"),
        "picture": node("GetVideoComponents", video=["other video", 0]),
    }
    choices = {"left": {}, "right": {}, "index": {"index": 1}, "reference": {"reference": ["picture", 0]}}
    for face, more in choices.items():
        prompt[face] = node("FlashLipsTrackFace", video=["video", 0], face=face, every=2, stabilise="fixed", **more)
    centres = [track.boxes[0, [0, 2]].mean() / SIDE for (track,) in kept(engine, prompt, *choices)]
    assert np.allclose(centres, [0.5, 1.5, 1.5, 1.5], atol=0.2)


@pytest.mark.comfy
def test_the_sheet_is_shown_on_the_node_with_and_without_the_clip(engine, graph) -> None:
    graph["of video"] = node("FlashLipsPreviewTrack", track=["track", 0], video=["video", 0], frames=5)
    graph["of images"] = node("FlashLipsPreviewTrack", track=["track", 0], images=["parts", 0], frames=5)
    graph["bare"] = node("FlashLipsPreviewTrack", track=["track", 0])
    run = engine.run(graph, ("of video", "of images", "bare"))
    assert run.is_success, run.errors
    of_video, of_images, bare = (run.outputs[name][0] for name in ("of video", "of images", "bare"))
    assert of_video.shape == of_images.shape and of_video.shape[-1] == 3
    assert (of_video - of_images).abs().mean() < 0.01
    assert bare.shape[0] == 1 and bare.max() <= 1
    for name in ("of video", "of images", "bare"):
        (shown,) = run.ui[name]["images"]
        assert (engine.base / "temp" / shown["subfolder"] / shown["filename"]).is_file()


@pytest.mark.comfy
def test_crops_go_back_where_they_came_from_and_nothing_else_changes(engine, graph) -> None:
    graph["crop"] = node("FlashLipsCropFaces", images=["parts", 0], track=["track", 0], size=256)
    graph["paste"] = node("FlashLipsPasteFaces", images=["parts", 0], crops=["crop", 0], track=["track", 0])
    graph["inverted"] = node("ImageInvert", image=["crop", 0])
    graph["edit"] = node(
        "FlashLipsPasteFaces", images=["parts", 0], crops=["inverted", 0], track=["track", 0], mask=["crop", 1], feather=0
    )
    parts, (crops, mask), (pasted,), (edited,), (track,) = kept(engine, graph, "parts", "crop", "paste", "edit", "track")
    images = parts[0]
    assert crops.shape == (NUM_SEEN + NUM_EMPTY, 256, 256, 3) and mask.shape == crops.shape[:3]
    assert mask.amin((1, 2)).tolist() == mask.amax((1, 2)).tolist() == [1] * NUM_SEEN + [0] * NUM_EMPTY
    inside = torch.zeros(images.shape[:3], dtype=torch.bool)
    for frame, box, roll in zip(inside[:NUM_SEEN], track.boxes, track.roll, strict=False):
        x0, y0, x1, y1 = Square.of((*box, roll)).bounds()  # of the turned one
        frame[max(int(y0), 0) : int(y1) + 1, max(int(x0), 0) : int(x1) + 1] = True
    for result in (pasted, edited):
        assert result.shape == images.shape and torch.equal(result[~inside], images[~inside])
    assert -10 * torch.log10((pasted - images)[inside].square().mean()) > 48
    assert (edited - images)[inside].abs().mean() > 0.1


@pytest.mark.comfy
def test_what_cannot_work_is_said_in_the_nodes_error_box(engine, graph) -> None:
    face_clip(engine.base / "input" / "long.mp4", num_empty=9)
    face_clip(engine.base / "input" / "wide.mp4", "fe")
    face_clip(engine.base / "input" / "empty.mp4", "e")
    for name in ("long", "wide", "empty"):
        graph[name] = node("LoadVideo", file=f"{name}.mp4")
        graph[f"{name} parts"] = node("GetVideoComponents", video=[name, 0])
    track, images = ["track", 0], ["parts", 0]
    graph["crop"] = node("FlashLipsCropFaces", images=images, track=track)
    cases = {
        "got neither": node("FlashLipsTrackFace", face="largest"),
        "got both": node("FlashLipsTrackFace", face="largest", video=["video", 0], images=images),
        "needs a picture of the person": node("FlashLipsTrackFace", face="reference", video=["video", 0]),
        "The reference picture has no face": node(
            "FlashLipsTrackFace", face="reference", video=["video", 0], reference=["empty parts", 0]
        ),
        "no face 3: it shows 1 face, number 0": node("FlashLipsTrackFace", face="index", index=3, video=["video", 0]),
        "No face in any of the 14 frames": node("FlashLipsTrackFace", face="largest", video=["empty", 0]),
        "track has 14 frames, the image batch 19": node("FlashLipsCropFaces", images=["long parts", 0], track=track),
        "clip of 192x192 pixels, the images have 384x192": node(
            "FlashLipsPasteFaces", images=["wide parts", 0], crops=["crop", 0], track=track
        ),
        "19 crops for a track of 14": node("FlashLipsPasteFaces", images=images, crops=["long parts", 0], track=track),
        "clip of 192x192 pixels, this one has 384x192": node("FlashLipsPreviewTrack", track=track, video=["wide", 0]),
    }
    for words, case in cases.items():
        assert words in refused(engine, {**graph, "case": case}, "case")


@pytest.mark.comfy
def test_a_second_run_does_not_track_again_and_a_cancelled_one_can_be_repeated(engine, graph) -> None:
    assert engine.run(graph, "track", interrupt_at=("progress_state", 4)).is_interrupted
    assert engine.run(graph, "track").is_success
    graph["sheet"] = node("FlashLipsPreviewTrack", track=["track", 0])
    again = engine.run(graph, "track")
    assert again.is_success and "track" in again.cached


@pytest.mark.comfy
@pytest.mark.parametrize("name", ["TrackFace", "PreviewTrack", "CropFaces", "PasteFaces"])
def test_every_widget_has_a_tooltip_and_every_node_a_description(engine, name: str) -> None:
    info = engine.node_info(f"FlashLips{name}")
    inputs = info["input"]["required"] | info["input"].get("optional", {})
    assert info["category"] == "FlashLips/face" and len(info["description"]) > 40
    assert all(len(options["tooltip"]) > 15 for _, options in inputs.values())
