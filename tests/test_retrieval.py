"""Retrieved starts: which mouth a frame starts from, how it is laid over the frame, and what is left to be edited."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from toy_dubs import QUICK, make_poses, make_track, planes_of

from flashlips_core import steps
from flashlips_core.codec import CELL_PX
from flashlips_core.compose import whole_picture
from flashlips_core.images.edit import edit_images
from flashlips_core.media import read_frames
from flashlips_core.media.part import write_images
from flashlips_core.pipeline import DubSettings
from flashlips_core.retrieval import (
    CENTRE,
    RADII,
    RIM_PX,
    STEP_COST,
    SWITCH_COST,
    Faces,
    Mouths,
    _viterbi,
    choose_path,
    ellipse,
    fine_size,
    lay,
    mouth_window,
    needs_of,
    no_rims,
    rim_of,
    steady_openings,
)
from flashlips_core.types import FlashLipsError

SIZE = 96


def some_faces(count: int, scene: int | np.ndarray = 0, seed: int = 0, openings: np.ndarray | None = None) -> Faces:
    """Poses by chance, all else alike."""
    poses = torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))
    gaps = np.zeros(count) if openings is None else openings
    return Faces(poses, gaps, np.zeros((count, 2)), np.broadcast_to(scene, count), no_rims(count))


def mouths_of(crops: torch.Tensor, faces: Faces | None = None, outlines: np.ndarray | None = None) -> Mouths:
    """The mouths of crops (N, 3, SIZE, SIZE) in [-1, 1]."""
    windows = ((crops[(..., *mouth_window(crops.shape[-1]))] + 1) * 127.5).round().byte()
    return Mouths(windows, faces or some_faces(len(crops)), np.arange(len(crops)), outlines, crops.shape[-1])


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 1.2 - 0.6


def picture() -> torch.Tensor:
    """A face of plain skin, far from black and white. (3, SIZE, SIZE)"""
    ticks = torch.linspace(0, 6, SIZE)
    return 0.1 * torch.sin(ticks)[:, None] * torch.cos(ticks) + torch.tensor([0.2, 0.0, -0.1])[:, None, None]


def plane(across: float, down: float, level: float) -> torch.Tensor:
    """Another light. (SIZE, SIZE)"""
    ticks = torch.linspace(-1, 1, SIZE)
    return level + across * ticks + down * ticks[:, None]


# ---- the path --------------------------------------------------------------------------------------------------------------


def price(path: tuple[int, ...], cost: np.ndarray, frames: np.ndarray) -> float:
    """What a path costs, counted by hand."""
    total = sum(cost[t, mouth] for t, mouth in enumerate(path))
    for before, after in itertools.pairwise(path):
        if before != after:
            total += STEP_COST if frames[after] == frames[before] + 1 else SWITCH_COST
    return total


@pytest.mark.parametrize("seed", range(12))
def test_the_path_is_the_cheapest_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost = rng.random((6, 4)) * rng.choice([0.1, 0.5, 2.0])
    frames = np.sort(rng.choice(7, 4, replace=False))  # some follow each other
    path = tuple(_viterbi(cost, frames).tolist())
    assert path == min(itertools.product(range(4), repeat=6), key=lambda other: price(other, cost, frames))


def test_staying_is_free_and_a_better_mouth_must_be_worth_the_jump() -> None:
    cost = np.array([[0.0, 1.0]] + [[0.1, 0.0]] * 2 + [[0.0, 1.0]])
    frames = np.array([3, 40])
    assert _viterbi(cost, frames).tolist() == [0, 0, 0, 0]
    assert _viterbi(np.full((50, 1), 7.0), frames[:1]).tolist() == [0] * 50
    assert _viterbi(20 * cost, frames).tolist() == [0, 1, 1, 0]


def test_a_mouth_that_speaks_the_wanted_poses_is_followed_frame_by_frame() -> None:
    spoken = some_faces(8)
    mouths = mouths_of(noise(1).repeat(8, 1, 1, 1), spoken)
    assert choose_path(mouths, spoken.rows(np.array([2, 3, 4, 5]))).tolist() == [2, 3, 4, 5]


def test_no_frame_takes_the_mouth_of_another_scene() -> None:
    shown = some_faces(6, np.array([0, 0, 0, 1, 1, 1]))
    mouths = mouths_of(noise(1).repeat(6, 1, 1, 1), shown)
    wanted = replace(
        shown.rows(np.array([4, 4, 1, 1, 1, 5])), scenes=np.array([0, 0, 1, 1, 2, 0])
    )  # each wants the other scene's
    path = choose_path(mouths, wanted)
    assert set(path[:2]) <= {0, 1, 2} and set(path[2:4]) <= {3, 4, 5}
    assert path[4] == -1  # its scene shows no mouth
    assert path[5] in (0, 1, 2)


def test_a_wanted_gap_outweighs_the_rest_of_the_pose() -> None:
    shown = some_faces(2, openings=np.array([0.02, 0.4]))
    mouths = mouths_of(noise(1).repeat(2, 1, 1, 1), shown)
    wanted = replace(shown.rows(np.array([0])), openings=np.array([0.38]))
    assert choose_path(mouths, wanted).tolist() == [1]
    assert choose_path(mouths, replace(wanted, openings=np.array([0.02]))).tolist() == [0]


def test_blurred_mouths_and_turned_heads_are_avoided() -> None:
    crops = noise(1).repeat(3, 1, 1, 1)
    crops[1] = crops[1].mean((1, 2), keepdim=True)  # nothing but its colour
    alike = Faces(torch.zeros(3, 12), np.zeros(3), np.array([[0.5, 0.0], [0, 0], [0.1, 0]]), np.zeros(3, int), no_rims(3))
    assert choose_path(mouths_of(crops, alike), replace(alike, heads=np.zeros((3, 2)))).tolist() == [2, 2, 2]


def test_a_hand_beside_the_mouth_is_seen_in_the_rim() -> None:
    small = torch.rand(3, RIM_PX, RIM_PX, generator=torch.Generator().manual_seed(0)) * 0.05
    behind = small.clone()
    behind[:, 14:22, 2:9] += 0.8
    rims = np.stack([rim_of(behind), rim_of(small)])
    shown = Faces(torch.zeros(2, 12), np.zeros(2), np.zeros((2, 2)), np.zeros(2, int), rims)
    assert choose_path(mouths_of(noise(1).repeat(2, 1, 1, 1), shown), shown).tolist() != [0, 0]
    assert choose_path(mouths_of(noise(1).repeat(2, 1, 1, 1), shown), shown.rows(np.array([1, 1]))).tolist() == [1, 1]


def test_a_hand_is_not_taken_along_for_lips_that_fit_a_little_better() -> None:
    """In one place much: so it costs more than the same difference all around."""
    small = torch.rand(3, RIM_PX, RIM_PX, generator=torch.Generator().manual_seed(0)) * 0.05
    behind, other = small.clone(), small + 0.1 * torch.rand(3, RIM_PX, RIM_PX, generator=torch.Generator().manual_seed(1))
    behind[:, 18:23, 3:9] += 0.6
    rims = np.stack([rim_of(behind), rim_of(other)])
    gaps = np.array([0.2, 0.1])  # the hand's frame has the wanted gap, the other lacks two deviations
    shown = Faces(torch.zeros(2, 12), gaps, np.zeros((2, 2)), np.zeros(2, int), rims)
    wanted = Faces(torch.zeros(1, 12), np.array([0.16]), np.zeros((1, 2)), np.zeros(1, int), rim_of(small)[None])
    assert choose_path(mouths_of(noise(1).repeat(2, 1, 1, 1), shown), wanted).tolist() == [1]


# ---- rims and needs --------------------------------------------------------------------------------------------------------


def test_a_rim_does_not_see_planes_of_light_nor_the_lips() -> None:
    small = torch.rand(3, RIM_PX, RIM_PX, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ticks = torch.linspace(-1, 1, RIM_PX)
    light = torch.stack(
        [0.3 * ticks.expand(RIM_PX, -1), -0.2 * ticks[:, None].expand(-1, RIM_PX), torch.full((RIM_PX,) * 2, 0.4)]
    )
    rim = rim_of(small)
    assert rim.shape == no_rims(1)[0].shape and rim.dtype == np.float32
    assert np.abs(rim_of(small + light) - rim).max() < 1e-6
    opened = small.clone()
    row, column = round(CENTRE[1] * RIM_PX), round(CENTRE[0] * RIM_PX)
    opened[:, row - 2 : row + 2, column - 2 : column + 2] = -1
    assert np.array_equal(rim_of(opened), rim)


def test_rims_differ_by_the_mean_square_of_the_colours_around() -> None:
    """Of a difference that no plane explains: stripes so fine that a plane through them is flat."""
    stripes = (torch.arange(RIM_PX) % 2 * 2.0 - 1).expand(3, RIM_PX, RIM_PX)
    distance = np.square(rim_of(0.1 * stripes) - rim_of(torch.zeros_like(stripes))).sum()
    assert distance == pytest.approx(0.01, rel=0.05)


def test_a_frame_needs_nothing_where_the_lips_fit_and_everything_without_a_mouth() -> None:
    shown = some_faces(3)
    mouths, path = mouths_of(noise(3), shown), np.array([0, 1, -1])
    assert needs_of(mouths, shown, path).tolist() == [0, 0, 1]
    far = replace(shown, openings=shown.openings + 0.3)
    assert needs_of(mouths, far, path).tolist() == [1, 1, 1]
    between = needs_of(mouths, replace(shown, openings=shown.openings + 0.08), path)
    assert 0 < between[0] < 1


def test_lips_that_are_measured_decide_what_is_needed() -> None:
    shown = some_faces(4, openings=np.array([0.1, 0.1, 0.1, 0.1]))
    wanted = replace(shown, poses=shown.poses + 3, openings=np.array([0.1, 0.13, 0.18, 0.3]))
    needs = needs_of(mouths_of(noise(4), shown), wanted, np.arange(4))
    assert needs[0] == needs[1] == 0 and 0 < needs[2] < 1 and needs[3] == 1


# ---- laying ----------------------------------------------------------------------------------------------------------------


def test_pixels_outside_the_ellipse_are_bit_identical() -> None:
    crops, mouths = noise(3), mouths_of(noise(2, 1))
    before = crops.clone()
    starts, laid = lay(crops, mouths, np.array([1, -1, 0]))
    assert torch.equal(crops, before)  # the frames' own are not written into
    assert starts.shape == crops.shape and laid.shape == (3, 1, SIZE, SIZE)
    outside = (ellipse(SIZE) == 0).expand(3, 3, -1, -1)
    assert torch.equal(starts[outside], crops[outside])
    assert torch.equal(starts[1], crops[1]) and not laid[1].any()
    assert torch.equal(laid[0, 0], ellipse(SIZE)) and (starts[0] != crops[0]).any()
    inside = laid[0, 0] == 1
    assert inside.sum() > 0.5 * np.pi * RADII[0] * RADII[1] * SIZE**2 * 0.49  # the ellipse without its rim


def test_the_ellipse_lies_in_the_window_that_is_kept_of_a_mouth() -> None:
    rows, columns = mouth_window(768)
    outside = ellipse(768).clone()
    outside[rows, columns] = 0
    assert not outside.any()


def test_no_background_comes_along_from_either_face() -> None:
    def left_of(edge: float) -> np.ndarray:
        return np.array([[[0.0, 0.0], [edge, 0.0], [edge, 1.0], [0.0, 1.0]]])

    crops, mouths = noise(1), mouths_of(noise(1, 1), outlines=left_of(0.36))
    starts, laid = lay(crops, mouths, np.array([0]), left_of(0.30))
    right = round(0.62 * SIZE)  # beyond both, and what is added around them
    assert torch.equal(starts[..., right:], crops[..., right:]) and not laid[..., right:].any()
    assert (laid[..., round(0.34 * SIZE)] > 0.5).any()  # the wider face's own
    assert (lay(crops, mouths, np.array([0]))[1][..., right:] > 0.5).any()  # nobody has looked


@pytest.mark.parametrize(("across", "down", "level"), [(0.0, 0.0, 0.25), (0.2, 0.0, 0.0), (-0.1, 0.15, -0.2)])
def test_a_laid_mouth_takes_the_frames_light(across: float, down: float, level: float) -> None:
    """The same face under another light is the frame again; another mouth in it agrees with the frame at its rim."""
    frame = picture() + plane(across, down, level)
    opened = picture()
    row, column = round(CENTRE[1] * SIZE), round(CENTRE[0] * SIZE)
    opened[:, row - 8 : row + 8, column - 12 : column + 12] = -0.9
    starts, _ = lay(frame[None].repeat(2, 1, 1, 1), mouths_of(torch.stack([picture(), opened])), np.array([0, 1]))
    assert (starts[0] - frame).abs().max() < 0.02
    weight = ellipse(SIZE)
    rim = (weight > 0.2) & (weight < 0.8)
    assert (starts[1] - frame)[:, rim].abs().max() < 0.03
    assert (starts[1] - frame)[:, row, column].max() < -0.5  # and it is another mouth


def test_colours_are_matched_channel_by_channel() -> None:
    cast = torch.tensor([0.2, -0.1, 0.0])[:, None, None]
    starts, _ = lay((picture() + cast)[None], mouths_of(picture()[None]), np.array([0]))
    assert (starts[0] - picture() - cast).abs().max() < 0.02


# ---- sizes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop_px", [64, 256, 320, 384, 512, 1024])
def test_fine_crops_have_whole_pixels_for_each_latent_cell(crop_px: int) -> None:
    sizes = [fine_size(crop_px, side) for side in (20.0, 150.4, 300.0, 417.9, 520.1, 669.4, 2000.0)]
    assert sizes == sorted(sizes) and sizes[0] == crop_px and sizes[-1] <= max(768, crop_px)
    assert not any(CELL_PX * size % crop_px for size in sizes)
    assert abs(sizes[3] - max(417.9, crop_px)) <= crop_px / 16  # half a pixel per cell


# ---- whole clips -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["retrieved", "frame"])
def test_a_clip_with_a_single_face_and_one_of_a_single_frame_are_dubbed(lipsync, clip, tmp_path, start) -> None:  # noqa: F811
    still = clip(name="still.mkv", pts=(0,))
    one = lipsync.edit_video(still, make_track(1), make_poses(3), tmp_path / "one.mkv", start=start, crf=0, **QUICK)
    assert (one.frames, one.edited, one.references) == (1, 1, [0])
    track = make_track(25, absent=tuple(range(1, 25)))
    report = lipsync.edit_video(clip(), track, make_poses(), tmp_path / "out.mkv", start=start, crf=0, **QUICK)
    assert (report.frames, report.edited, report.references) == (25, 1, [0])
    source, result = planes_of(clip()), planes_of(tmp_path / "out.mkv")
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(source[1:], result[1:], strict=True))


@pytest.mark.parametrize("start", ["retrieved", "frame"])
def test_a_single_image_is_edited(lipsync, start) -> None:  # noqa: F811
    image = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    edited = edit_images(lipsync, image, make_track(1), make_poses(2), start=start)
    assert edited.shape == image.shape and torch.isfinite(edited).all()
    assert torch.equal(edited[..., :2, :], image[..., :2, :])


def test_a_start_that_nobody_knows_is_refused() -> None:
    with pytest.raises(FlashLipsError, match="choose one of retrieved, frame"):
        DubSettings(start="middle")
    assert not DubSettings(mode="masked").is_retrieved and DubSettings().is_retrieved


def test_references_are_frames_that_show_the_face(lipsync, plain_clip) -> None:  # noqa: F811
    track = make_track(25, absent=(7,))
    assert lipsync.look(plain_clip, track, given=[20, 3, 3]).frames == [3, 20]
    for given in ([3, 7], [99], [-1], []):
        with pytest.raises(FlashLipsError, match="must be some of the track's 25 frames, and show the face"):
            lipsync.look(plain_clip, track, given=given)


def test_mouths_are_those_of_the_frames_with_a_face(lipsync, plain_clip) -> None:  # noqa: F811
    track = make_track(25, absent=(0, 7))
    look = lipsync.look(plain_clip, track, 4)
    shown = np.flatnonzero(track.present)
    assert np.array_equal(look.mouths.frames, shown) and len(look.mouths) == len(shown)
    assert look.rims[shown].any(1).all() and not look.rims[[0, 7]].any()
    crops = lipsync.look(plain_clip, track, given=[3, 9]).references
    torch.testing.assert_close(lipsync.encode_lips(crops), look.mouths.faces.poses[[2, 7]], atol=1e-4, rtol=0)
    view = mouth_window(look.mouths.size)
    stored = look.mouths.windows[[2, 7]].float() / 127.5 - 1
    assert (stored - crops[(..., *view)]).abs().max() <= 1 / 127.5


def test_a_voice_that_says_what_the_clip_says_needs_no_edit(lipsync, clip, tmp_path) -> None:  # noqa: F811
    """Wanted poses are the clip's own: every frame starts from itself, and nothing is redrawn."""
    source, track = clip(), make_track()
    look = lipsync.look(source, track)
    starts, needs = lipsync.starts(look, look.poses, track, np.arange(25))
    assert not needs.any()
    how = {"references": look, "crf": 0, **QUICK}
    own = replace(make_poses(), values=look.poses)
    lipsync.edit_video(source, track, own, tmp_path / "own.mkv", **how)
    change = [
        np.abs(a[0].astype(int) - b[0]).max() for a, b in zip(planes_of(source), planes_of(tmp_path / "own.mkv"), strict=True)
    ]
    stayed = [change[i] for i in range(25) if starts[i] == i]
    assert stayed and max(stayed) <= 2


@pytest.mark.parametrize("start", ["retrieved", "frame"])
def test_images_and_a_video_of_them_get_the_same_mouths(lipsync, tmp_path, monkeypatch, start) -> None:  # noqa: F811
    monkeypatch.setattr(steps, "choose_path", lambda mouths, wanted: (np.arange(len(wanted)) + 3) % len(mouths))
    track, poses, files = make_track(8), make_poses(8), (tmp_path / "in.mov", tmp_path / "out.mkv")
    clouds = torch.rand(8, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    pictures = F.interpolate(clouds, size=(48, 64), mode="bicubic").clamp(0, 1)
    write_images(pictures.movedim(1, -1).expand(-1, -1, -1, 3), track.fps, files[0])
    lipsync.edit_video(files[0], track, poses, files[1], start=start, crf=0, **QUICK)
    source, video = (torch.stack([whole_picture(f, 64) for f in read_frames(file)]) for file in files)
    edited = edit_images(lipsync, (source + 1) / 2, track, poses, start=start) * 2 - 1
    assert (edited - video).abs().mean() < 0.2 * (edited - source).abs().mean()


def test_openings_are_told_by_all_that_tells_them() -> None:
    rng = np.random.default_rng(0)
    true = 0.1 + 0.1 * np.sin(np.arange(60) / 4)
    read, mirrored, gaps = (true + rng.normal(0, 0.03, 60) for _ in range(3))
    steady = steady_openings(read, mirrored, 3 * gaps + 1, np.arange(60))
    assert np.abs(steady - true).mean() < 0.6 * np.abs(read - true).mean()
    apart = steady_openings(read, mirrored, None, 10 * np.arange(60))
    assert np.allclose(apart, (read + mirrored) / 2)  # frames far apart say nothing of each other
    assert np.allclose(steady_openings(read[:1], read[:1], gaps[:1], np.array([7])), read[:1])
