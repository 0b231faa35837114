"""Sharp faces: how they are cut, who is held back, and what their detail is worth to the codec's decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import stored_crops, tiny_codec

from flashlips_core.dataset.store import IRISES, MOUTH_CORNERS
from flashlips_core.face.crop import crop_box
from flashlips_core.train import portraits as stage
from flashlips_core.train.batches import portraits
from flashlips_core.train.batches.portraits import MOUTH_PLACE, cut_bytes, read_portraits, upright_square
from flashlips_core.turned import Square, to_pixels, to_shares
from flashlips_core.types import FlashLipsError

FRONTAL = {468: (170, 150), 473: (230, 150), 4: (200, 185), 61: (180, 222), 291: (220, 222)}  # px


def face(turn: float = 0.0, about: tuple[float, float] = (200.0, 150.0)) -> np.ndarray:
    """MediaPipe's points of a frontal face, most of them on the nose, turned clockwise by ``turn`` radians. (478, 2)"""
    points = np.tile(np.array(FRONTAL[4], float), (478, 1))
    for index, place in FRONTAL.items():
        points[index] = place
    cos, sin = np.cos(turn), np.sin(turn)
    return ((points - about) @ np.array([[cos, sin], [-sin, cos]]) + about).astype(np.float32)


def test_a_frontal_faces_square_is_the_one_that_tracks_have():
    points = face()
    square = upright_square(points)
    box = crop_box(points[[*IRISES, 4, *MOUTH_CORNERS]])
    assert square.roll == 0 and square.side == pytest.approx(box[2] - box[0])
    assert square.box[:4] == pytest.approx(box, abs=0.1)


@pytest.mark.parametrize("turn", [-0.5, 0.3])
def test_a_turned_face_gets_a_turned_square_with_the_mouth_at_its_place(turn):
    upright, turned = upright_square(face()), upright_square(face(turn))
    assert turned.roll == pytest.approx(turn, abs=1e-3) and turned.side == pytest.approx(upright.side, rel=1e-3)
    mouth = to_shares(face(turn)[list(MOUTH_CORNERS)], turned.box).mean(0)
    assert mouth == pytest.approx(MOUTH_PLACE, abs=1e-3)


@pytest.mark.parametrize("side", [64, 256])  # enlarged, and averaged first
def test_what_is_cut_lies_where_the_square_says(side):
    rows, columns = np.mgrid[0:300, 0:300]
    square = Square(140.0, 150.0, float(side), 0.4)
    picture = np.stack([columns, rows, 0 * rows], -1).clip(0, 255).astype(np.uint8)  # red is x, green is y
    cut = cut_bytes(picture, square, 96).astype(float)
    shares = (np.array([[20, 30], [48, 48], [70, 80]]) + 0.5) / 96  # x y
    # a pixel's number is half a pixel less than the place of its middle
    for (x, y), expected in zip(shares, to_pixels(shares, square.box) - 0.5, strict=True):
        found = cut[int(y * 96), int(x * 96), :2]
        assert found == pytest.approx(expected, abs=2.0)


def folder_of_portraits(folder, sets: dict[str, int], size: int = 400):
    """Each person smiling and not; noise with a face's points."""
    files, people = [], []
    for name, count in sets.items():
        (folder / name).mkdir(parents=True)
        for person in range(count):
            for look in ("neutral", "smiling"):
                files.append(f"{name}/{person:03d}_{look}.png")
                people.append(f"{name}_{person:03d}")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8))
    for file in files:
        picture.save(folder / file)
    np.savez(folder / "mediapipe.npz", files=files, people=people, landmarks_px=np.repeat(face()[None], len(files), 0))
    return folder


def test_people_who_are_held_back_are_never_learnt_from_and_come_from_every_set(tmp_path):
    folder = folder_of_portraits(tmp_path / "p", {"small": 6, "large": 24}, size=8)
    learnt, held_out = read_portraits(folder, held_out=10)
    kept = {p.person for p in held_out}
    assert 8 <= len(kept) <= 11 and not kept & {p.person for p in learnt}
    assert {p.path.parent.name for p in held_out} == {"small", "large"}
    assert len(learnt) + len(held_out) == 60 and len(held_out) == 2 * len(kept)


def test_folders_without_labels_or_pictures_are_refused(tmp_path):
    with pytest.raises(FlashLipsError, match="No mediapipe.npz"):
        read_portraits(tmp_path)
    folder = folder_of_portraits(tmp_path / "p", {"a": 1}, size=8)
    for file in folder.rglob("*.png"):
        file.unlink()
    with pytest.raises(FlashLipsError, match="none of their pictures"):
        read_portraits(folder)


def test_invented_grain_is_no_detail_and_too_much_of_it_counts_against():
    generator = torch.Generator().manual_seed(0)
    real, other = (torch.randn(1, 3, 64, 64, generator=generator) * 0.2 for _ in range(2))
    soft = torch.nn.functional.avg_pool2d(real, 3, 1, 1)

    def terms(image):
        return {k: float(v) for k, v in stage.true_texture_loss(image, real).items()}

    assert terms(real)["missing"] == pytest.approx(0, abs=1e-4) and terms(real)["excess"] == pytest.approx(0, abs=1e-4)
    assert terms(soft)["missing"] > 0.05 and terms(soft)["excess"] < 0.01
    assert terms(soft + other)["missing"] == pytest.approx(terms(soft)["missing"], rel=0.15)  # gained nothing
    assert terms(soft + other)["excess"] > 10 * terms(soft)["excess"] + 0.005


def test_stripes_at_the_finest_frequencies_are_seen():
    picture, box = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.2, np.array([8, 8, 56, 56])
    stripes = torch.zeros(64, 64)
    stripes[::2] = 0.3
    smooth = torch.linspace(0, 1, 64).expand(3, 64, 64)
    before = stage.finest_power(picture, box)
    assert stage.finest_power(picture + stripes, box) > 2 * before
    assert stage.finest_power(picture + smooth, box) == pytest.approx(before, rel=0.1)


def test_the_decoder_learns_portraits_and_the_encoder_stays(tmp_path):
    learnt, held_out = read_portraits(folder_of_portraits(tmp_path / "p", {"a": 4}), held_out=1)
    codec, tiles = tiny_codec(), tmp_path / "tiles.npz"
    stores = [stored_crops(tmp_path / "crops")]
    stage.build_tiles(stage.draw_crops(learnt, stores), codec, tiles, 6, 0)
    crop, points = portraits.crop_portrait(held_out[0], 192)
    check = stage.decode_check([crop], stage.mouth_boxes([points], 192), codec)
    before = {name: p.clone() for name, p in codec.network.state_dict().items()}
    scores = check(codec.network, 0)
    settings = stage.PortraitsSettings(str(tmp_path / "run"), steps=30, batch_size=2, lr=3e-3)
    network = stage.train_portraits(codec, [tiles], None, None, settings)
    for name, value in network.state_dict().items():
        assert name.startswith("decoder") or torch.equal(value, before[name]), name
    assert any(not torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert check(network, 30)["psnr"] > scores["psnr"]


def test_tiles_hold_the_latents_of_their_place(tmp_path):
    """Far from a crop's border a tile's latents are those of the tile itself: pixels and cells are cut alike."""
    learnt, _ = read_portraits(folder_of_portraits(tmp_path / "p", {"a": 2}), held_out=0)
    codec, tiles = tiny_codec(), tmp_path / "tiles.npz"
    stage.build_tiles(stage.draw_crops(learnt, []), codec, tiles, 2, 0)
    batch = stage.tile_batches([tiles], 4)(torch.Generator().manual_seed(0))
    again = codec.encode(batch.pixels)
    assert (again - batch.latents)[..., 2:-2, 2:-2].abs().max() < 0.05
