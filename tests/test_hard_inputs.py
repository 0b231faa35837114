"""Kinds of input that people have and that once crashed, were lost or came out wrong without a word: see docs/reliability.md.

Each file is made here. Cases that are drawn by chance are drawn with a fixed seed, so that they are the same each time.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import NUM_FRAMES, picture_planes, same_frames, tone
from safetensors.torch import save_file
from toy_dubs import CROP_PX, make_poses, make_track, toy_networks

from flashlips_core import checkpoint
from flashlips_core.checks import check_output
from flashlips_core.compose import paste
from flashlips_core.face.cascades import LandmarkDetector
from flashlips_core.face.detect import widened
from flashlips_core.loading import load_part
from flashlips_core.media import load_audio, open_sound, plan_frames, probe, read_frames, read_planned, shown_seconds, write_video
from flashlips_core.media.save import save_clip
from flashlips_core.pipeline import LipSync
from flashlips_core.sidecar import load_poses, load_track, save_poses, save_track
from flashlips_core.steps import DubSettings
from flashlips_core.system.files import cannot_write
from flashlips_core.system.memory import is_out_of_memory
from flashlips_core.types import Audio, FaceTrack, FlashLipsError, Frame, LipPoses

ROOT = Path(__file__).resolve().parents[1]
MODES = ("cut", "loop", "ping-pong", "hold", "silence")
GRID = {"time_base": Fraction(1, 25), "pts": tuple(range(NUM_FRAMES))}


# ---- sound -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6, 7, 8, 9, 16])
def test_sound_of_any_number_of_channels_is_written_and_read(plain_clip, tmp_path, suffix, channels, caplog):
    samples = torch.from_numpy(tone(48_000, channels, Fraction(1)))
    path = tmp_path / f"out{suffix}"
    write_video(path, read_frames(plain_clip), probe(plain_clip), Audio(samples, 48_000), preset="ultrafast", crf=40)
    got = load_audio(path).samples
    wanted = samples if channels <= 8 else samples.mean(0, keepdim=True)
    assert len(got) >= len(wanted) and ("mixed down" in caplog.text) == (channels > 8)
    middle = slice(5000, 40_000)
    if suffix in (".mov", ".mkv"):  # nothing is lost there, so that each channel can be told from the others
        assert torch.allclose(got[:, middle], wanted[:, middle], atol=1e-3)
    loud = got[:, middle].abs().amax(1) > 0.05
    assert loud.sum() >= len(wanted) - 1  # AAC and Opus low-pass the one for deep effects


# ---- clocks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("later_s", [0, 5, 3600, 90_000], ids=["the same clock", "a little later", "an hour", "a day"])
def test_joined_recordings_go_on_where_the_earlier_ended(clip, tmp_path, caplog, later_s):
    parts = []
    for name, start in (("a.ts", 10), ("b.ts", 10 + later_s)):
        pts = tuple(start * 90_000 + i * 3600 for i in range(NUM_FRAMES))
        parts.append(clip(name=name, pts=pts, audio_rate=48_000, audio_start_s=start))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    gap = later_s - 1 if later_s == 5 else 0  # five seconds may be a break in a broadcast, and are kept
    info, frames = probe(joined), list(read_frames(joined))
    steps = np.diff([frame.pts for frame in frames]) / 90_000
    assert info.num_frames == len(frames) == 2 * NUM_FRAMES and steps.min() > 0
    assert steps.max() == pytest.approx(0.04 + gap, abs=0.15)
    assert float(open_sound(joined).duration) == pytest.approx(2 + gap, abs=0.2)
    assert ("goes on where it ended" in caplog.text) == (gap == 0)
    looped = list(read_planned(joined, plan_frames(50, info.fps, Fraction(8), "ping-pong", shown_seconds(info, 50))))
    shown = [np.array_equal(looped[50 + i].planes[0], frames[48 - i].planes[0]) for i in range(20)]
    assert all(shown)
    for out in (tmp_path / "copied.mp4", tmp_path / "coded.mp4"):
        save_clip(joined, out, "copy" if out.stem == "copied" else "h264")
        assert float(probe(out).duration) == pytest.approx(2 + gap, abs=0.2) and probe(out).num_frames == 50
        assert float(open_sound(out).duration) == pytest.approx(2 + gap, abs=0.2)


def test_a_rate_that_is_the_tick_of_a_clock_is_not_believed(tmp_path):
    path = tmp_path / "raw.dv"
    with av.open(str(path), "w", format="dv") as output:
        stream = output.add_stream("dvvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 720, 576, "yuv420p"
        output.mux(stream.encode(av.VideoFrame(720, 576, "yuv420p")))
        output.mux(stream.encode())
    info = probe(path)
    assert (info.fps, info.num_frames) == (25, 1)
    assert len(plan_frames(1, info.fps, Fraction(2, 5), "hold")) == 10


def test_a_recording_without_a_stated_length_has_as_many_frames_as_can_be_read(clip):
    pts = tuple(range(0, 300 * 40, 40))
    path = clip(name="live.mkv", time_base=Fraction(1, 1000), pts=pts, container_options=(("live", "1"),))
    assert probe(path).num_frames == 300 and probe(path).duration == 12


@pytest.mark.parametrize("seed", range(12))
def test_uneven_clips_are_as_long_as_their_sound_whatever_the_mode(clip, seed):
    """A random clip (container, rates, frames) and voice: the picture ends within a frame of the sound."""
    random = np.random.default_rng(seed)
    name, tick = [("a.mp4", 90_000), ("b.mkv", 1000), ("c.mov", 30_000)][seed % 3]
    rates = random.choice([10, 15, 24, 30, 50, 60], 3)
    steps = np.repeat(tick // rates, random.integers(3, 12, 3))
    pts = tuple((np.cumsum(steps) - steps).tolist())
    path = clip(name=name, time_base=Fraction(1, tick), pts=pts, options=(("crf", "30"), ("bf", "0")))
    info, frame_s = probe(path), 1 / float(min(rates))
    assert info.num_frames == len(pts)
    voice = Fraction(int(random.integers(200, 4000)), 1000)
    length = float(sum(steps)) / tick
    for mode in MODES:
        plan = plan_frames(info.num_frames, info.fps, voice, mode, shown_seconds(info, info.num_frames))
        shown = list(read_planned(path, plan))
        picture = float((shown[-1].pts - shown[0].pts) * info.time_base + 1 / info.fps)
        wanted = {"cut": min(float(voice), length), "silence": length}.get(mode, max(float(voice), length))
        assert picture == pytest.approx(wanted, abs=1.5 * frame_s + 2 / tick), mode


# ---- pictures --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 16), (16, 300), (300, 16), (63, 64), (1, 1)])
def test_a_detector_takes_pictures_of_any_shape(shape):
    images = np.random.default_rng(0).integers(0, 255, (2, *shape, 3), np.uint8)
    wide = widened(images)
    assert min(wide.shape[1:3]) >= 64 and np.array_equal(wide[:, : shape[0], : shape[1]], images)
    assert len(LandmarkDetector(None).find(images)) == 2


def test_grey_stays_grey():
    planes = picture_planes(0, 64, 48, "yuv420p")
    for chroma, is_grey in ((128, True), (129, True), (140, False)):
        frame = Frame((planes[0], np.full((24, 32), 128, np.uint8), np.full((24, 32), chroma, np.uint8)), "yuv420p", 0, 1, 1)
        edited = paste(
            frame, (10, 5, 42, 37), torch.tensor([1.0, -1, -1])[:, None, None].expand(3, 32, 32), torch.ones(1, 32, 32)
        )
        assert not np.array_equal(edited.planes[0], frame.planes[0])
        assert all(np.array_equal(a, b) for a, b in zip(edited.planes[1:], frame.planes[1:], strict=True)) == is_grey


def write_webp(path: Path) -> Path:
    from PIL import Image

    images = [Image.fromarray(np.full((48, 64, 3), 20 * i, np.uint8)) for i in range(8)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=40, lossless=True)
    return path


def test_animated_webp_is_a_clip(tmp_path):
    path, out = write_webp(tmp_path / "x.webp"), tmp_path / "out.mp4"
    info, frames = probe(path), list(read_frames(path))
    assert (info.num_frames, info.fps, info.duration, len(frames)) == (8, 25, Fraction(8, 25), 8)
    assert [frame.pts for frame in frames] == list(range(0, 320, 40)) and same_frames(list(read_frames(path, 3, 5)), frames[3:5])
    write_video(out, read_frames(path), info, keep_audio_from=path, extras_from=path)
    assert probe(out).num_frames == 8
    (tmp_path / "cut.webp").write_bytes(path.read_bytes()[:100])
    with pytest.raises(FlashLipsError, match="WebP"):
        probe(tmp_path / "cut.webp")


def test_transparent_and_interlaced_clips_say_what_is_lost(clip, tmp_path, caplog):
    with av.open(str(tmp_path / "a.mkv"), "w") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuva420p"
        output.mux(stream.encode(av.VideoFrame(64, 48, "yuva420p")) + stream.encode())
    probe(tmp_path / "a.mkv")
    assert "is transparent in places" in caplog.text
    probe(clip(name="b.mp4", options=(("x264-params", "tff=1"), ("flags", "+ildct+ilme"))))
    assert "b.mp4 is interlaced" in caplog.text and "bwdif" in caplog.text


def test_hdr_keeps_its_light_levels_and_opens_in_players(clip, tmp_path):
    light = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1):max-cll=1000,400"
    source, out = tmp_path / "hdr.mp4", tmp_path / "out.mp4"
    plain = clip(pix_fmt="yuv420p10le", color=(1, 9, 9, 16))
    write_video(source, read_frames(plain), replace(probe(plain), light=tuple(light.split(":"))))
    assert probe(source).light == tuple(light.split(":"))
    write_video(out, read_frames(source), probe(source), extras_from=source)
    assert probe(out).light == tuple(light.split(":")) and (probe(out).color_trc, probe(out).colorspace) == (16, 9)
    with av.open(str(out)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.codec_tag, context.pix_fmt) == ("hevc", "hvc1", "yuv420p10le")


def test_tags_languages_chapters_and_subtitles_are_kept(talking_clip, tmp_path):
    source, out = tmp_path / "talk.mkv", tmp_path / "out.mkv"
    words = tmp_path / "words.srt"
    words.write_text("1\n00:00:00,100 --> 00:00:00,400\nHello\n\n2\n00:00:05,000 --> 00:00:06,000\nbehind the end\n\n")
    with av.open(str(talking_clip)) as given, av.open(str(words)) as written, av.open(str(source), "w") as output:
        streams = {stream: output.add_stream_from_template(stream) for stream in (*given.streams, *written.streams)}
        streams[given.streams.audio[0]].metadata["language"] = "fra"
        streams[written.streams[0]].metadata["language"] = "eng"
        output.metadata.update({"title": "My talk", "artist": "Me", "comment": "first"})
        tick = Fraction(1, 1000)
        chapters = [(0, 500, "one"), (500, 1000, "two"), (1500, 2000, "behind the end")]
        output.set_chapters(
            [{"id": i, "start": a, "end": b, "time_base": tick, "metadata": {"title": t}} for i, (a, b, t) in enumerate(chapters)]
        )
        for packet in (*given.demux(), *written.demux()):
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                output.mux(packet)
    tags = {"comment": "Edited."}
    write_video(out, read_frames(source), probe(source), None, source, metadata=tags, extras_from=source)
    with av.open(str(out)) as container:
        kept = {key.lower(): value for key, value in container.metadata.items()}
        assert (kept["title"], kept["artist"], kept["comment"]) == ("My talk", "Me", "first Edited.")
        assert [chapter["metadata"]["title"] for chapter in container.chapters()] == ["one", "two"]
        assert container.streams.audio[0].language == "fra" and container.streams.subtitles[0].language == "eng"
        texts = [bytes(packet) for packet in container.demux(subtitles=0) if packet.size]
        assert texts == [b"Hello"]


# ---- files -----------------------------------------------------------------------------------------------------------------


def test_two_writers_of_one_name_leave_the_last_whole_file_and_spare_other_part_files(plain_clip, tmp_path):
    path, own = tmp_path / "X.mp4", tmp_path / "X.mp4.part"
    own.write_bytes(b"mine")

    def interrupted():
        for index, frame in enumerate(read_frames(plain_clip)):
            if index == 5:
                write_video(path, read_frames(plain_clip, 0, 10), probe(plain_clip))
                assert probe(path).num_frames == 10
            yield frame

    write_video(path, interrupted(), probe(plain_clip))
    assert probe(path).num_frames == NUM_FRAMES and len(list(read_frames(path))) == NUM_FRAMES
    assert own.read_bytes() == b"mine" and sorted(p.name for p in tmp_path.iterdir()) == ["X.mp4", "X.mp4.part", "clip.mp4"]


@pytest.mark.parametrize(
    "name", ["Interview: part 1.mp4", "50%d.mp4", "-o.mp4", "ä ö 漢.mp4", "l" * 251 + ".mp4", "é" * 125 + ".mp4"]
)
def test_any_name_that_a_disk_takes_is_a_name(plain_clip, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(plain_clip.read_bytes())
    assert probe(name).num_frames == NUM_FRAMES
    (tmp_path / "out").mkdir()
    write_video(f"out/{name}", read_frames(name), probe(name), keep_audio_from=name)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [name]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".safetensors"])
def test_a_disk_that_takes_no_more_is_one_sentence_and_leaves_nothing(plain_clip, tmp_path, suffix):
    """The limit on a file's size stands in for a full disk: writes fail in the middle just so."""
    (tmp_path / "out").mkdir()
    script = """
import resource, sys, numpy as np
from dataclasses import replace
from flashlips_core.media import probe, read_frames, write_video
from flashlips_core.sidecar import save_poses
from flashlips_core.types import FlashLipsError, LipPoses
from fractions import Fraction
import torch
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
def noise():
    random = np.random.default_rng(0)
    for frame in read_frames(sys.argv[1]):
        for repeat in range(8):
            planes = tuple(random.integers(0, 255, plane.shape, np.uint8) for plane in frame.planes)
            yield replace(frame, planes=planes, pts=frame.pts * 8 + repeat * 3600)
try:
    if sys.argv[2].endswith("safetensors"):
        save_poses(LipPoses(torch.zeros(5000, 12), Fraction(25)), sys.argv[2])
    else:
        write_video(sys.argv[2], noise(), probe(sys.argv[1]), crf=5, preset="ultrafast")
except FlashLipsError as error:
    print(error)
"""
    out = tmp_path / "out" / f"x{suffix}"
    done = subprocess.run([sys.executable, "-c", script, plain_clip, out], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Writing x{suffix} failed: the file is larger than") and done.stdout.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space"), (errno.EACCES, "permission"),
        (errno.EROFS, "permission"), (errno.EINVAL, "another container"), (errno.ENAMETOOLONG, "too long"),
        (errno.ENOMEM, "out of memory"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_write_that_fails_is_its_cause(code, words):
    message = str(cannot_write("x.mp4", OSError(code, os.strerror(code))))
    assert words in message and ("space" in message) == (code in (errno.ENOSPC, errno.EDQUOT))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(), torch.OutOfMemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 1"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a memory object"), RuntimeError("can't start new thread"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), RuntimeError("HIP out of memory."),
        RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"), RuntimeError("Unable to allocate 3 GiB"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        ImportError("libgomp.so.1: cannot allocate memory in static TLS block"),
    ],
)  # fmt: skip
def test_memory_that_runs_out_is_known_by_every_wording(error):
    assert is_out_of_memory(error)
    wrapped = ValueError("while reading")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) and not is_out_of_memory(
        OSError(2, "x")
    )


# ---- checkpoints, tracks and poses -----------------------------------------------------------------------------------------

MUTATIONS = {
    "no JSON": lambda h: "{not json",
    "a list": lambda h: [1],
    "no role": lambda h: {k: v for k, v in h.items() if k != "role"},
    "no version": lambda h: {k: v for k, v in h.items() if k != "version"},
    "a version in words": lambda h: h | {"version": "one"},
    "no config": lambda h: h | {"config": None},
    "no class": lambda h: h | {"config": {k: v for k, v in h["config"].items() if k != "class"}},
    "a class that is a number": lambda h: h | {"config": h["config"] | {"class": 3}},
    "words for numbers": lambda h: h | {"config": h["config"] | {"channels": "many"}},
    "numbers for lists": lambda h: h | {"config": h["config"] | {"channels": 5}},
    "none at all": lambda h: h | {"config": h["config"] | {"channels": []}},
    "negative ones": lambda h: h | {"config": h["config"] | {"channels": [-8, -8]}},
    "absurd sizes": lambda h: h | {"config": h["config"] | {"channels": [1 << 40, 8]}},
    "absurd depths": lambda h: h | {"config": h["config"] | {"encoder_blocks": [10**6, 1]}},
    "a note in words": lambda h: h | {"notes": {"crop_px": "wide"}},
    "notes that are a list": lambda h: h | {"notes": []},
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_malformed_header_is_one_sentence(tmp_path, name):
    path = tmp_path / "editor.safetensors"
    checkpoint.save(toy_networks()["editor"], path, "editor", {"crop_px": CROP_PX})
    tensors, header = checkpoint.read_tensors(path)
    header = MUTATIONS[name](header)
    save_file(tensors, path, {"flashlips": header if isinstance(header, str) else json.dumps(header)})
    with pytest.raises(FlashLipsError, match=r"^editor.safetensors ") as caught:
        load_part("editor", path)
    assert "\n" not in str(caught.value)


def test_numbers_that_are_none_are_refused_wherever_they_come_from(tmp_path, plain_clip):
    path = tmp_path / "editor.safetensors"
    network = toy_networks()["editor"]
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] = float("nan")
    checkpoint.save(network, path, "editor", {})
    with pytest.raises(FlashLipsError, match="not numbers"):
        load_part("editor", path)
    with pytest.raises(FlashLipsError, match="not numbers"):
        LipPoses(torch.full((3, 12), float("inf")), Fraction(25))
    track = make_track()
    with pytest.raises(FlashLipsError, match="no number"):
        replace(track, boxes=np.where(track.boxes > 20, np.nan, track.boxes))
    poses = tmp_path / "poses.safetensors"
    header = {"format": "flashlips", "version": 1, "role": "poses", "config": {"fps": "25"}, "notes": {}}
    for values, fields, words in [
        (torch.full((3, 12), float("nan")), {}, "not numbers"),
        (torch.zeros(3, 12, 2), {}, "damaged"),
        (torch.zeros(3, 12), {"fps": "0"}, "damaged"),
        (torch.zeros(3, 12), {"fps": "fast"}, "damaged"),
    ]:
        checkpoint.write_tensors(poses, {"values": values}, header | {"config": header["config"] | fields})
        with pytest.raises(FlashLipsError, match=words):
            load_poses(poses)
    checkpoint.write_tensors(poses, {"boxes": torch.zeros(3, 4)}, header | {"role": "track"})
    with pytest.raises(FlashLipsError, match="damaged"):
        load_track(poses)


def test_tracks_and_poses_are_not_written_over_something_else(plain_clip, tmp_path):
    before = plain_clip.read_bytes()
    save_poses(make_poses(), tmp_path / "p.safetensors")
    for save, what, path, words in [
        (save_track, make_track(), plain_clip, "media file's name"),
        (save_poses, make_poses(), tmp_path / "new.mov", "media file's name"),
        (save_track, make_track(), tmp_path / "p.safetensors", "is no track file"),
    ]:
        with pytest.raises(FlashLipsError, match=words):
            save(what, path)
    assert plain_clip.read_bytes() == before and len(load_poses(tmp_path / "p.safetensors")) == 25
    save_poses(make_poses(3), tmp_path / "p.safetensors")  # one of its kind is replaced
    assert len(load_poses(tmp_path / "p.safetensors")) == 3


# ---- settings and the Python API -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"crf": 99}, {"crf": -1}, {"preset": "speedy"}, {"mode": "both"}, {"length": "bounce"}, {"batch": 0}, {"every": 0},
        {"num_references": -1}, {"gain": float("nan")}, {"gain": -1}, {"threshold": float("inf")}, {"sharpen": 2},
    ],
)  # fmt: skip
def test_settings_are_refused_when_they_are_made(wrong):
    with pytest.raises(FlashLipsError):
        DubSettings(**wrong)


def test_models_modes_and_crops_that_would_do_nothing_are_said_before_the_work(model_folder, tmp_path, plain_clip):
    with pytest.raises(FlashLipsError, match="No model in"):
        LipSync.load(tmp_path)
    lipsync = LipSync.load(model_folder, device="cpu")
    calls = []
    for settings, words in [(DubSettings(mode="masked"), "was refined"), (DubSettings(), "crops")]:
        dubber = lipsync if settings.mode == "masked" else LipSync.load(model_folder, device="cpu", crop_px=16)
        with pytest.raises(FlashLipsError, match=words):
            dubber.dub(plain_clip, Audio(torch.rand(1, 16_000), 16_000), tmp_path / "o.mp4", settings, progress=calls.append)
    assert not calls


def test_wrong_shapes_and_rates_are_sentences(plain_clip):
    for make in [
        lambda: LipPoses(torch.zeros(12), Fraction(25)),
        lambda: LipPoses(torch.zeros(3, 12, dtype=torch.int64), Fraction(25)),
        lambda: LipPoses(torch.zeros(3, 12), Fraction(0)),
        lambda: FaceTrack(np.zeros((2, 4), np.float32), np.zeros((3, 5, 2), np.float32), np.ones(2, bool), 9, 9, Fraction(25)),
        lambda: FaceTrack(np.zeros((2, 3), np.float32), np.zeros((2, 5, 2), np.float32), np.ones(2, bool), 9, 9, Fraction(25)),
        lambda: plan_frames(-1, Fraction(25), Fraction(1)),
        lambda: plan_frames(3, Fraction(-25), Fraction(1)),
        lambda: check_output("", []),
        lambda: probe("a\0b.mp4"),
    ]:
        with pytest.raises(FlashLipsError) as caught:
            make()
        assert "\n" not in str(caught.value)


# ---- the process -----------------------------------------------------------------------------------------------------------

ENDLESS = """
import itertools, sys
from dataclasses import replace
from flashlips_core.cli import COMMANDS, Command, main
from flashlips_core.media import probe, read_frames, write_video
def endless(args):
    frame = next(read_frames(args.source))
    def frames():
        for index in itertools.count():
            if index == 30:
                print("busy", flush=True)
            yield replace(frame, pts=3600 * index)
    write_video(args.out, frames(), probe(args.source), preset="ultrafast")
def add(parser):
    parser.add_argument("source")
    parser.add_argument("out")
COMMANDS["endless"] = Command("", add, endless, str)
endless.__doc__ = ""
sys.exit(main(["endless", *sys.argv[1:]]))
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    "signals", [[signal.SIGINT, signal.SIGINT, signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP, signal.SIGTERM]], ids=str
)
def test_a_stop_leaves_nothing_behind_and_ends_as_shells_expect(plain_clip, tmp_path, signals):
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", ENDLESS, plain_clip, tmp_path / "out" / "x.mp4"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in signals],  # nohup and & have some ignored
    )  # fmt: skip
    assert process.stdout.readline() == "busy\n"
    for number in signals:
        process.send_signal(number)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 128 + signals[0] and said.strip() == "Stopped; no half-written file is left."
    assert not list((tmp_path / "out").iterdir())


def run_command(*arguments, **options):
    command = [sys.executable, "-m", "flashlips_core", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, timeout=600, **{"capture_output": True, **options})


@pytest.mark.skipif(os.name == "nt", reason="file descriptors of POSIX")
def test_terminals_without_letters_and_streams_that_are_gone_are_no_trouble(tmp_path):
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = run_command("track", "fehlt-ä漢.mp4", "-o", tmp_path / "t.safetensors", env=ascii_only)
    assert done.returncode == 2 and done.stderr.startswith(b"No file at fehlt-") and b"Traceback" not in done.stderr
    for closed in ([2], [1, 2], [0, 1, 2]):
        options = {"capture_output": False, "preexec_fn": lambda closed=closed: [os.close(number) for number in closed]}
        assert run_command("track", "missing.mp4", "-o", tmp_path / "t.safetensors", **options).returncode == 2
    reading, writing = os.pipe()
    os.close(reading)
    done = run_command("track", "missing.mp4", "-o", tmp_path / "t.safetensors", capture_output=False, stderr=writing)
    os.close(writing)
    assert done.returncode == 2
