"""``eval --pairs``: anybody's outputs; known answers on drawn faces, published judges with random weights in their own files."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawn_motion import COUNT, motion_of, pictures, written
from tiny import tiny_codec

from flashlips_core import measures as m
from flashlips_core.cli import main
from flashlips_core.evaluate.networks import lpips, syncnet
from flashlips_core.evaluate.pairs import listing, matching, run
from flashlips_core.evaluate.pairs import pictures as pics
from flashlips_core.evaluate.pairs.listing import Pair
from flashlips_core.evaluate.pairs.rows import ROWS, badness, rows_of
from flashlips_core.evaluate.pairs.scores import Judges, scored
from flashlips_core.face.motion import FaceMotion
from flashlips_core.types import FlashLipsError

GAPS = 0.15 + 0.1 * np.sin(np.arange(COUNT) / 2)


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    monkeypatch.setattr(pics, "MOST_PICTURES", 4)


class Drawn:
    """A witness who knows what was drawn: lip gaps by the file's name."""

    name = "the one who drew it"

    def __init__(self, gaps: dict[str, np.ndarray]) -> None:
        self.gaps = gaps

    def see(self, path: Path, stop: int, waiting=None) -> FaceMotion:
        return motion_of(self.gaps.get(path.stem, GAPS)[:stop])


def touched(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


# ---- which belongs to which ------------------------------------------------------------------------------------------------


def test_a_csv_names_files_beside_itself_and_a_row_with_a_lost_one_is_said(tmp_path):
    touched(tmp_path, "a.mp4", "s.mp4", "v.wav")
    table = tmp_path / "pairs.csv"
    rows = "Generated, source ,sound,who\na.mp4,s.mp4,v.wav,me\nb.mp4,s.mp4,,me\na.mp4,s.mp4,,\n,s.mp4,,\n"
    table.write_text(rows, encoding="utf-8-sig")
    pairs, skipped = listing.from_csv(table)
    assert pairs == [
        Pair(tmp_path / "a.mp4", tmp_path / "s.mp4", tmp_path / "v.wav"),
        Pair(tmp_path / "a.mp4", tmp_path / "s.mp4"),
    ]
    assert [one.name for one in skipped] == ["b", "line 5"]
    assert "b.mp4 (line 3)" in skipped[0].why and "names no generated" in skipped[1].why
    assert [pair.is_reconstruction for pair in pairs] == [False, True]


@pytest.mark.parametrize("text", ["generated,sound\na.mp4,b.wav\n", ""])
def test_a_csv_without_a_column_is_refused_by_its_name(tmp_path, text):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(FlashLipsError, match=r"p.csv has no column (generated or )?source"):
        listing.from_csv(tmp_path / "p.csv")
    with pytest.raises(FlashLipsError, match="cannot be read as a CSV"):
        listing.from_csv(tmp_path / "none.csv")


def test_outputs_find_their_sources_by_the_longest_name_that_they_begin_with(tmp_path):
    made = touched(tmp_path / "made", "ann.mp4", "ann_out.mp4", "ann_2--voice.mp4", "anna.mp4", "note.txt")
    sources = touched(tmp_path / "sources", "ann.mp4", "ann_2.mov")
    pairs, skipped = listing.from_folders(made, sources)
    assert {p.name: p.source.name for p in pairs} == {"ann": "ann.mp4", "ann_out": "ann.mp4", "ann_2--voice": "ann_2.mov"}
    assert [one.name for one in skipped] == ["anna"] and "rename it" in skipped[0].why
    with pytest.raises(FlashLipsError, match="No videos in .* as --generated"):
        listing.from_folders(tmp_path / "nowhere", sources)


# ---- how they lie over each other ------------------------------------------------------------------------------------------


def info(frames: int = 50, fps: float = 25, size: tuple[int, int] = (64, 48)) -> SimpleNamespace:
    return SimpleNamespace(num_frames=frames, fps=fps, width=size[0], height=size[1], path="clip.mp4")


def test_videos_of_one_rate_are_compared_frame_by_frame_as_long_as_both_last():
    found = matching.match(info(40), info(50, 25.01))
    assert np.array_equal(found.rows, np.arange(40)) and found.size == (64, 48)
    assert found.notes == ["40 frames, its source 50: the first 40 are compared"]
    assert matching.match(info(40), info(50), 8).notes == ["40 frames, its source 50: the first 8 are compared"]
    assert not matching.match(info(), info()).notes and len(matching.match(info(), info(), 7)) == 7


def test_videos_of_two_rates_are_compared_by_time():
    found = matching.match(info(25, 25), info(60, 50))
    assert np.array_equal(found.rows, 2 * np.arange(25) + 1) and "compared by time, 25 frames" in found.notes[0]
    slower = matching.match(info(100, 50), info(25, 25))
    assert np.array_equal(slower.rows, np.arange(50) // 2)
    assert np.array_equal(matching.by_time(np.arange(60.0), 50, found), found.rows)
    assert np.isnan(matching.by_time(np.arange(10.0), 50, found)[5:]).all()


def test_another_size_is_resized_and_another_framing_is_not_compared():
    assert matching.match(info(size=(128, 96)), info()).size == (64, 48)
    cropped = matching.match(info(size=(64, 64)), info())
    assert cropped.size is None and "another framing" in cropped.notes[0]
    with pytest.raises(FlashLipsError, match="share 3 frames; 5 are needed"):
        matching.match(info(3), info())


def test_frames_are_paired_as_they_were_matched(tmp_path):
    levels = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8) * 5
    source, made = written(tmp_path / "s.mp4", levels), written(tmp_path / "m.mp4", levels[:10])
    rows = np.array([1, 1, 3, 6, 9])
    pairs = list(matching.paired_frames(made, source, matching.Matching(rows, 25.0, (32, 32))))
    assert [int(shown[0, 0, 0]) // 5 for shown, _ in pairs] == rows.tolist()
    assert [int(made[0, 0, 0]) // 5 for _, made in pairs] == [0, 1, 2, 3, 4]


# ---- pictures --------------------------------------------------------------------------------------------------------------


def crops_of(made: np.ndarray, gaps: np.ndarray | None = None) -> pics.Crops:
    motions = motion_of(np.full(COUNT, 0.1)), motion_of(np.full(COUNT, 0.1) if gaps is None else gaps)
    crops = pics.Crops(motions, 25.0)
    for index, pair in enumerate(zip(pictures(), made, strict=True)):
        crops.look(index, *pair)
    return crops


def test_a_copy_of_the_source_is_beyond_every_ceiling():
    found = pics.likeness(crops_of(pictures()), tiny_codec(), None, is_reconstruction=True)
    assert found["psnr_mouth"] == found["psnr_outside"] == pytest.approx(100)
    assert found["ssim_mouth"] == pytest.approx(1) and found["ssim_outside"] == pytest.approx(1)
    assert found["psnr_mouth_floor"] < 60 and found["psnr_mouth_ceiling"] < 60 and crops_of(pictures()).jitter == 0


def test_a_spoilt_mouth_costs_inside_and_a_spoilt_forehead_outside():
    mouth, forehead = pictures(), pictures()
    mouth[:, 95:102, 72:90] = 128
    forehead[:, 10:30, 60:90] = 128
    inside, outside = (pics.likeness(crops_of(made), tiny_codec(), None, True) for made in (mouth, forehead))
    assert inside["psnr_mouth"] < 40 and inside["psnr_outside"] == pytest.approx(100)
    assert outside["psnr_outside"] < 50 and outside["psnr_mouth"] == pytest.approx(100)


def test_what_a_mouth_should_look_like_is_not_known_of_another_sound():
    found = pics.likeness(crops_of(pictures()), tiny_codec(), None, is_reconstruction=False)
    assert set(found) == {"psnr_outside", "ssim_outside"}


def test_a_face_that_is_off_by_as_much_in_each_frame_does_not_jitter_and_one_that_flickers_does():
    darker = (pictures().astype(int) - 6).clip(0, 255).astype(np.uint8)
    assert crops_of(darker).jitter < 1.5
    flicker = pictures().astype(int)
    flicker[::2] -= 6
    assert crops_of(flicker.clip(0, 255).astype(np.uint8)).jitter > 5


# ---- published judges ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lpips_folder(tmp_path_factory) -> Path:
    """Random weights under the names of torchvision's AlexNet and of LPIPS's own file."""
    folder = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(0)
    tensors = {}
    for place, sizes in zip(lpips.PLACES, lpips.CONVS, strict=True):
        conv = torch.nn.Conv2d(*sizes)
        tensors |= {f"features.{place}.weight": conv.weight.data, f"features.{place}.bias": conv.bias.data}
    torch.save(tensors | {"classifier.6.bias": torch.zeros(1000)}, folder / "alexnet-owt-7be5be79.pth")
    lin = {f"lin{i}.model.1.weight": torch.rand(1, sizes[1], 1, 1) for i, sizes in enumerate(lpips.CONVS)}
    torch.save(lin, folder / "alex.pth")
    return folder


def test_lpips_reads_the_published_files_and_is_zero_for_equal_pictures(lpips_folder):
    network = lpips.load_lpips(lpips_folder)
    first, second = torch.rand(2, 1, 3, 64, 64) * 2 - 1
    assert not network(first, first).any()
    apart = network(first, second)
    assert apart.shape == (1, 1, 64, 64) and apart.min() > 0
    one, other = (x[0] / x[0].norm(dim=0) for x in (network.features(first)[4], network.features(second)[4]))
    weight = torch.load(lpips_folder / "alex.pth")["lin4.model.1.weight"]
    last = torch.nn.functional.interpolate((weight[0] * (one - other) ** 2).sum(0)[None, None], (64, 64), mode="bilinear")
    assert (apart >= last - 1e-5).all()


def test_lpips_in_the_mouth_falls_with_a_spoilt_mouth_only(lpips_folder):
    made = pictures()
    made[:, 95:102, 72:90] = 128
    network = lpips.load_lpips(lpips_folder)
    found = pics.likeness(crops_of(made), tiny_codec(), network, is_reconstruction=True)
    assert found["lpips_mouth"] > 2 * found["lpips_outside"] > 0


def test_a_folder_without_a_networks_file_says_what_to_put_there(tmp_path, lpips_folder):
    judges = Judges.load(tmp_path)
    assert judges.lpips is None and judges.missing["lpips"].startswith("put alexnet-*.pth or")
    assert str(tmp_path) in judges.missing["identity"] and "vggface2" in judges.missing["identity"]
    assert "syncnet_v2.model" in Judges.load(None).missing["syncnet"] and "--weights" in Judges.load(None).missing["syncnet"]
    assert Judges.load(lpips_folder).lpips is not None
    rows = {row.name: row for row in rows_of([{"frames": 1.0, "lost": 0.0}], judges)}
    assert rows["LSE-C (SyncNet)"].value is None and "syncnet_v2.model" in rows["LSE-C (SyncNet)"].note
    (tmp_path / "alex.pth").write_bytes(b"no pickle")
    (tmp_path / "alexnet-x.pth").write_bytes(b"no pickle")
    assert "not a readable file" in Judges.load(tmp_path).missing["lpips"]


def test_syncnet_has_the_published_names_and_reads_its_file(tmp_path):
    torch.manual_seed(0)
    network = syncnet.SyncNet()
    names = set(network.state_dict())
    published = {"netcnnaud": (0, 4, 8, 11, 14, 18), "netcnnlip": (0, 4, 8, 11, 14, 18), "netfcaud": (0, 3), "netfclip": (0, 3)}
    assert {f"{tower}.{place}.weight" for tower, places in published.items() for place in places} <= names
    assert network.netcnnlip[0].weight.shape == (96, 3, 5, 7, 7) and network.netfclip[3].weight.shape == (1024, 512)
    torch.save(network.state_dict(), tmp_path / "syncnet_v2.model")
    loaded = syncnet.load_syncnet(tmp_path)
    crops = (np.random.default_rng(0).integers(0, 255, (8, 224, 224, 3))).astype(np.uint8)
    sound = np.random.default_rng(1).normal(0, 0.1, 16_000)
    first, second = (syncnet.sync_of(loaded, crops, sound) for _ in range(2))
    assert first == second and first.distance > 0 and abs(first.offset) <= syncnet.MOST_SHIFT
    with pytest.raises(FlashLipsError, match="more than 5 frames"):
        syncnet.sync_of(loaded, crops[:4], sound)


def test_the_offset_is_where_sound_and_lips_agree():
    heard = torch.randn(60, 16, generator=torch.Generator().manual_seed(0))
    for late in (-3, 0, 5):
        found = syncnet.scores(heard.roll(late, 0), heard)
        assert found.offset == late and found.confidence > 1


def test_cepstra_have_100_rows_a_second_and_hear_loudness_and_pitch():
    time = np.arange(16_000) / 16_000
    quiet, loud, high = (a * np.sin(2 * np.pi * f * time) for a, f in ((0.1, 300), (0.2, 300), (0.1, 3000)))
    found = [syncnet.mfcc(sound) for sound in (quiet, loud, high)]
    assert found[0].shape == (99, 13)
    assert np.allclose(found[1][:, 0] - found[0][:, 0], 2 * math.log(2), atol=1e-6)  # energy, in front
    assert np.allclose(found[1][:, 1:], found[0][:, 1:], atol=1e-6) and np.abs(found[2][:, 1] - found[0][:, 1]).min() > 5


# ---- one pair, and all of them ---------------------------------------------------------------------------------------------


@pytest.fixture
def material(tmp_path) -> tuple[Path, Path]:
    return written(tmp_path / "made.mp4", pictures()), written(tmp_path / "source.mp4", pictures())


def test_a_reconstruction_is_held_against_the_sources_own_lips(material, tmp_path):
    made, source = material
    late = np.roll(GAPS, 2)
    found = scored(Pair(made, source), Drawn({"made": late}), Judges(), tiny_codec(), tmp_path / "sheet.png")
    assert found.numbers["lips_r"] == pytest.approx(m.correlation(late, GAPS)) and found.numbers["lips_lag"] == 2
    assert found.numbers["psnr_outside"] == pytest.approx(100) and found.numbers["sharpness"] == pytest.approx(1)
    assert found.sheet.is_file() and not found.notes and len(found.curves["wanted"]) == COUNT


def test_a_short_clip_does_not_fit_by_chance_at_a_large_lag(material):
    made, source = material
    noise = 0.2 + 0.05 * np.random.default_rng(0).standard_normal(COUNT)
    found = scored(Pair(made, source), Drawn({"made": noise}), Judges(), tiny_codec(), frames=8)
    assert abs(found.numbers["lips_lag"]) <= 2 and found.numbers["lips_best_r"] < 0.99


def test_another_sound_is_held_against_its_own_video_and_says_so_where_it_has_none(material, talking_clip, audio_only):
    made, source = material
    other = GAPS[::-1].copy()
    witness = Drawn({"made": other, talking_clip.stem: other})
    found = scored(Pair(made, source, talking_clip), witness, Judges(), tiny_codec())
    assert found.numbers["lips_r"] == pytest.approx(1) and "psnr_mouth" not in found.numbers
    heard = scored(Pair(made, source, audio_only), witness, Judges(), tiny_codec())
    assert "lips_r" not in heard.numbers and any("has no picture" in note for note in heard.notes)


def test_openings_beside_a_video_are_what_was_asked(material):
    made, source = material
    np.save(made.with_suffix(".opening.npy"), GAPS)
    assert scored(Pair(made, source), Drawn({}), Judges(), tiny_codec()).numbers["asked_r"] == pytest.approx(1)


def test_a_crop_of_the_source_keeps_its_lips_and_loses_its_pixels(material, tmp_path):
    made = written(tmp_path / "crop.mp4", pictures()[:, :, 40:120])
    found = scored(Pair(made, material[1]), Drawn({}), Judges(), tiny_codec())
    assert found.numbers["lips_r"] == pytest.approx(1) and "psnr_outside" not in found.numbers
    assert any("another framing" in note for note in found.notes)


def test_syncnet_hears_the_generated_videos_sound_and_its_absence_is_said(material, talking_clip):
    made, source = material
    silent = scored(Pair(made, source), Drawn({}), Judges(syncnet=syncnet.SyncNet().eval()), tiny_codec(), frames=8)
    assert "lse_c" not in silent.numbers and any("no sound to hear" in note for note in silent.notes)
    heard = scored(Pair(made, source, talking_clip), Drawn({}), Judges(syncnet=syncnet.SyncNet().eval()), tiny_codec(), frames=8)
    assert heard.numbers["lse_d"] > 0


def test_every_clip_that_can_be_measured_is_and_the_report_stands_alone(material, plain_clip, tmp_path, monkeypatch):
    made, source = material

    class Faceless(Drawn):
        def see(self, path: Path, stop: int, waiting=None) -> FaceMotion:
            motion = super().see(path, min(stop, COUNT))
            return motion if path != plain_clip else matching.rows_of(motion, [COUNT + 1] * stop)

    monkeypatch.setattr(run, "witness_of", lambda weights, lipsync: Faceless({}))
    lipsync, told = SimpleNamespace(codec=tiny_codec()), []
    pairs = [Pair(made, source), Pair(plain_clip, source)]
    lost = [listing.Skipped("gone", "there is no file")]
    result = run.measure_pairs(
        pairs, lipsync, tmp_path / "out", None, lost, "eval --pairs <x>", progress=lambda done, total: told.append((done, total))
    )
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told) and len(told) > COUNT
    assert [pair["name"] for pair in result["pairs"]] == ["made"]
    assert [one["name"] for one in result["skipped"]] == ["gone", plain_clip.stem] and "finds no face" in result["skipped"][1][
        "why"
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/jpeg;base64," in page and "://" not in page and "&lt;x&gt;" in page and "none; 5 clips are needed" in page
    assert json.loads((tmp_path / "out" / "result.json").read_text())["pairs"][0]["curves"]["generated"]
    with open(tmp_path / "out" / "clips.csv", newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["made"]
    with pytest.raises(FlashLipsError, match="None of 1 outputs could be measured; the first: .* finds no face"):
        run.measure_pairs(pairs[1:], lipsync, tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--generated", "DIR"], "--generated and --sources belong together"),
        (["--pairs", "p.csv", "--data", "d"], "is a measurement of its own"),
        (["--pairs", "nowhere.csv"], "cannot be read as a CSV file"),
        (["--pairs", "nowhere.csv", "--weights", "nowhere"], "There is no folder nowhere"),
        (["--pairs", "nowhere.csv", "--frames", "2"], "--frames is 2; 5 or more"),
        (["--generated", "DIR", "--sources", "DIR"], "No videos in"),
    ],
)
def test_the_command_says_what_is_wrong_in_a_sentence(options, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("flashlips_core.cli.evaluate.load_lipsync", lambda args: None)
    arguments = [str(tmp_path) if word == "DIR" else word for word in options]
    assert main(["eval", *arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_the_command_measures_a_folder_and_repeats_itself(material, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("flashlips_core.cli.evaluate.load_lipsync", lambda args: SimpleNamespace(codec=tiny_codec()))
    monkeypatch.setattr(run, "witness_of", lambda weights, lipsync: Drawn({}))
    made, sources = (tmp_path / name for name in ("g", "s"))
    for folder, path, name in ((made, material[0], "one_out.mp4"), (sources, material[1], "one.mp4")):
        folder.mkdir()
        path.rename(folder / name)
    options = ["eval", "--generated", str(made), "--sources", str(sources), "--frames", "6", "--out", str(tmp_path / "out")]
    assert main([*options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pairs"][0]["frames"] == 6 and result["command"] == (
        f"python -m flashlips_core eval --frames 6 --generated {made} --sources {sources}"
    )


# ---- the table -------------------------------------------------------------------------------------------------------------


def test_an_interval_holds_the_mean_narrows_with_clips_and_needs_five():
    rng = np.random.default_rng(0)
    few, many = rng.normal(10, 1, 8), rng.normal(10, 1, 400)
    low, high = m.bootstrap_interval(few)
    assert low < few.mean() < high and few.min() < low
    narrow = np.subtract(*m.bootstrap_interval(many)[::-1])
    assert narrow == pytest.approx(2 * 1.96 / 20, rel=0.15) and narrow < high - low
    assert m.bootstrap_interval(few[:4]) is None and m.bootstrap_interval(few) == (low, high)


def test_rows_carry_intervals_and_the_worst_clip_has_the_most_faults():
    clips = [{"frames": 10.0, "lost": 1.0, "lips_r": r, "jitter": 0.1} for r in (0.9, 0.8, 0.7, 0.6, 0.5)]
    rows = {row.name: row for row in rows_of(clips, Judges())}
    found = rows["lip gap against the one wanted, r"]
    assert found.value == pytest.approx(0.7) and found.interval[0] < 0.7 < found.interval[1] and "higher = better" in found.note
    assert rows["frames whose face is lost"].value == 5 and rows["frames whose face is lost"].count == 50
    assert sorted(clips, key=badness)[0]["lips_r"] == 0.9 and badness({}) == 0
    assert len({row.key for row in ROWS}) == len(ROWS)
