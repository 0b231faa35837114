"""Load Video (Path) and Save Video: cutting, copying and encoding in the core, the nodes in the real ComfyUI."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import same_frames, tone

from flashlips_core.media import load_audio, probe, read_frames
from flashlips_core.media.part import write_images, write_part
from flashlips_core.media.save import save_clip, suffix_like
from flashlips_core.types import Audio, FlashLipsError


def packets(path: Path, kind: str = "video") -> list[bytes]:
    """The coded pieces of a file's first stream of this kind."""
    with av.open(str(path)) as media:
        stream = getattr(media.streams, kind)[0]
        return [bytes(packet) for packet in media.demux(stream) if packet.size]


def tags(path: Path) -> dict[str, str]:
    with av.open(str(path)) as media:
        return dict(media.metadata)


# ---- a part, or images, as a file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mov", ".mkv"])
def test_a_part_holds_the_frames_of_its_time_and_starts_at_zero(clip, tmp_path, suffix) -> None:
    source = clip(name=f"source{suffix}", audio_rate=48_000, audio_codec="pcm_s16le")
    write_part(source, tmp_path / "part.mov", 0.2, 0.4)
    part = probe(tmp_path / "part.mov")
    assert (part.num_frames, part.fps, part.duration) == (10, Fraction(25), Fraction(2, 5))
    frames, originals = list(read_frames(tmp_path / "part.mov")), list(read_frames(source))[5:15]
    assert frames[0].pts == 0
    for frame, original in zip(frames, originals, strict=True):
        assert np.abs(frame.planes[0].astype(int) - original.planes[0]).max() <= 8  # nearly lossless
    heard, whole = load_audio(tmp_path / "part.mov"), load_audio(source)
    assert heard.samples.shape == (2, 19_200)
    assert (heard.samples - whole.samples[:, 9600:28_800]).abs().max() < 1e-3


def test_a_part_keeps_uneven_times_and_a_phones_rotation(variable_rate_clip, rotated_clip, tmp_path) -> None:
    write_part(variable_rate_clip, tmp_path / "part.mov", 0.05, 0)
    pts = [frame.pts for frame in read_frames(variable_rate_clip)]
    kept = [p for p in pts if p >= 4500]
    assert [frame.pts for frame in read_frames(tmp_path / "part.mov")] == [p - kept[0] for p in kept]
    write_part(rotated_clip, tmp_path / "upright.mov", 0, 0.2)
    upright = probe(tmp_path / "upright.mov")
    assert (upright.width, upright.height, upright.rotation) == (48, 64, 0)


def test_a_part_behind_the_end_is_refused(plain_clip, tmp_path) -> None:
    with pytest.raises(FlashLipsError, match="no frame at 9 s, it is 1.00 s long"):
        write_part(plain_clip, tmp_path / "part.mov", 9, 1)
    assert not (tmp_path / "part.mov").exists()


def test_sound_that_ends_before_the_part_becomes_silence(clip, tmp_path) -> None:
    source = clip(name="short.mov", audio_rate=48_000, audio_codec="pcm_s16le", audio_s=Fraction(1, 5))
    write_part(source, tmp_path / "part.mov", 0.4, 0.4)
    assert load_audio(tmp_path / "part.mov").samples.abs().max() == 0


def test_images_become_a_clip_of_their_colours_and_rate(tmp_path) -> None:
    images = torch.rand(6, 32, 48, 3, generator=torch.Generator().manual_seed(0)).mean((1, 2), keepdim=True).expand(6, 32, 48, 3)
    voice = Audio(torch.from_numpy(tone(16_000, 1, Fraction(1, 4))), 16_000)
    steps = []
    write_images(images, 29.97, tmp_path / "made.mov", voice, lambda *step: steps.append(step))
    made = probe(tmp_path / "made.mov")
    assert (made.num_frames, made.fps, made.audio_rate) == (6, Fraction(2997, 100), 16_000)
    assert steps == [(i, 6) for i in range(1, 7)]
    with av.open(str(tmp_path / "made.mov")) as media:
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in media.decode(video=0)])
    assert np.abs(shown / 255 - images.numpy()).max() < 0.03


# ---- saving ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_copying_moves_every_packet_untouched(talking_clip, tmp_path, suffix) -> None:
    out = tmp_path / f"copy{suffix}"
    save_clip(talking_clip, out, metadata={"prompt": '{"1": 2}'})
    assert same_frames(list(read_frames(out)), list(read_frames(talking_clip)))
    assert packets(out, "audio") == packets(talking_clip, "audio")
    if suffix != ".mkv":
        assert packets(out) == packets(talking_clip)
    assert {key.lower(): value for key, value in tags(out).items()}["prompt"] == '{"1": 2}'


MILLISECONDS = {"time_base": Fraction(1, 1000), "pts": tuple(range(0, 1000, 40))}


@pytest.mark.parametrize(
    ("made", "suffix"),
    [
        ({"name": "reordered.mkv", "options": (("crf", "20"), ("bf", "3")), **MILLISECONDS}, ".mp4"),
        ({"name": "reordered.mkv", "options": (("crf", "20"), ("bf", "3")), **MILLISECONDS}, ".mkv"),
        ({"name": "modern.mkv", "codec": "libsvtav1", **MILLISECONDS}, ".mkv"),
        ({"name": "old.avi", "time_base": Fraction(1, 25), "pts": tuple(range(25))}, ".mp4"),
    ],
)
def test_copies_of_other_containers_keep_every_picture_and_the_rate(clip, tmp_path, made, suffix) -> None:
    source = clip(**made)
    save_clip(source, tmp_path / f"copy{suffix}")
    assert same_frames(list(read_frames(tmp_path / f"copy{suffix}")), list(read_frames(source)))
    copied = probe(tmp_path / f"copy{suffix}")
    assert (copied.fps, copied.num_frames, copied.is_variable_rate) == (Fraction(25), 25, False)


def test_a_copied_broadcast_starts_at_zero_with_its_sound(clip, tmp_path) -> None:
    hours = 900_000_000  # ticks
    source = clip(name="late.ts", pts=tuple(range(hours, hours + 25 * 3600, 3600)), audio_rate=44_100, audio_start_s=10_000)
    save_clip(source, tmp_path / "copy.mp4")
    with av.open(str(tmp_path / "copy.mp4")) as media:
        starts = [float(stream.start_time * stream.time_base) for stream in media.streams]
    assert all(start < 0.1 for start in starts)


def test_pictures_without_times_are_not_copied(clip, tmp_path) -> None:
    with pytest.raises(FlashLipsError, match="raw.h264 have no times and cannot be copied; choose a codec"):
        save_clip(clip(name="raw.h264"), tmp_path / "copy.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw.h264"]


def test_a_copy_keeps_rotation_and_the_sources_note(rotated_clip, tmp_path) -> None:
    noted = tmp_path / "noted.mp4"
    save_clip(rotated_clip, noted, metadata={"comment": "synthetic"})
    save_clip(noted, tmp_path / "again.mp4", metadata={"workflow": "{}"})
    assert probe(tmp_path / "again.mp4").rotation == probe(rotated_clip).rotation == 90
    assert tags(tmp_path / "again.mp4")["comment"] == "synthetic"


def test_new_sound_is_laid_under_copied_pictures(talking_clip, tmp_path) -> None:
    voice = Audio(torch.from_numpy(tone(16_000, 1, Fraction(3))), 16_000)
    save_clip(talking_clip, tmp_path / "dubbed.mp4", audio=voice)
    assert packets(tmp_path / "dubbed.mp4") == packets(talking_clip)
    heard = load_audio(tmp_path / "dubbed.mp4")
    assert heard.sample_rate == 16_000 and abs(float(heard.duration) - 1) < 0.1  # cut to the picture


@pytest.mark.parametrize(
    ("codec", "suffix", "name"),
    [("h264", ".mp4", "h264"), ("h265", ".mp4", "hevc"), ("vp9", ".webm", "vp9"), ("ffv1", ".mkv", "ffv1")],
)
def test_encoding_again_gives_the_codec_that_was_chosen(talking_clip, tmp_path, codec, suffix, name) -> None:
    out, steps = tmp_path / f"out{suffix}", []
    save_clip(talking_clip, out, codec, 20, progress=lambda *step: steps.append(step))
    with av.open(str(out)) as media:
        assert media.streams.video[0].codec_context.codec.canonical_name == name
        assert len(media.streams.audio) == 1
    assert len(list(read_frames(out))) == 25 and steps[-1] == (25, 25)
    if codec == "ffv1":
        assert same_frames(list(read_frames(out)), list(read_frames(talking_clip)))


def test_a_container_that_cannot_hold_the_pictures_is_refused(plain_clip, tmp_path) -> None:
    with pytest.raises(FlashLipsError, match="webm cannot hold h264 video as it is; choose another container"):
        save_clip(plain_clip, tmp_path / "out.webm")
    with pytest.raises(FlashLipsError, match="Unknown codec 'gif'"):
        save_clip(plain_clip, tmp_path / "out.mp4", "gif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4"]


@pytest.mark.parametrize("codec", ["copy", "h264"])
def test_stopping_a_save_leaves_no_file(plain_clip, tmp_path, codec) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_clip(plain_clip, tmp_path / "out.mp4", codec, progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4"]


def test_the_suffix_of_a_nameless_file_is_that_of_its_content(odd_clip, plain_clip, tmp_path) -> None:
    for path, suffix in ((odd_clip, ".mkv"), (plain_clip, ".mp4")):
        nameless = tmp_path / "upload.media"
        nameless.write_bytes(path.read_bytes())
        assert suffix_like(path) == suffix_like(nameless) == suffix


# ---- in ComfyUI ------------------------------------------------------------------------------------------------------------


def node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def temporary(engine) -> list[Path]:
    """The files in ComfyUI's temp folder, without parts of clips; engines are shared: other tests may have left results there."""
    return sorted(path for path in (engine.base / "temp").rglob("*") if path not in parts(engine))


def parts(engine) -> list[Path]:
    """Trimmed clips, which stay until ComfyUI empties the folder."""
    return sorted((engine.base / "temp").glob("flashlips-part-*.mov"))


def saved(engine, run) -> Path:
    """The file that Save Video tells the browser of."""
    assert run.is_success, run.errors
    [item] = run.ui["save"]["images"]
    return engine.base / item["type"] / item["subfolder"] / item["filename"]


@pytest.mark.comfy
def test_a_video_is_loaded_by_its_path_with_its_sound(engine, talking_clip, plain_clip) -> None:
    run = engine.run({"video": node("FlashLipsLoadVideo", path=f'"{talking_clip}"')}, "video")
    assert run.is_success, run.errors
    video, audio = run.outputs["video"]
    assert run.said["video"] == "64 x 48, 25 fps, 1.0 s, with sound"
    assert video.source == str(talking_clip) and audio["waveform"].shape[:2] == (1, 2) and audio["sample_rate"] == 44_100
    _, silence = engine.run({"video": node("FlashLipsLoadVideo", path=str(plain_clip))}, "video").outputs["video"]
    assert silence["waveform"].shape == (1, 2, 44_100) and not silence["waveform"].any()


@pytest.mark.comfy
def test_a_file_with_sound_alone_gives_its_sound(engine, audio_only) -> None:
    prompt = {"sound": node("FlashLipsLoadVideo", path=str(audio_only))}
    run = engine.run(prompt, "sound")
    video, audio = run.outputs["sound"]
    assert "it has no picture, so 'video' is empty" in run.said["sound"]
    assert video is None and audio["sample_rate"] == 44_100
    run = engine.run({**prompt, "save": node("FlashLipsSaveVideo", video=["sound", 0])})
    assert "There is no video; connect one" in run.errors["save"]


@pytest.mark.comfy
def test_a_missing_or_unreadable_file_is_said_in_one_sentence(engine, tmp_path) -> None:
    def said(path: object) -> str:
        return engine.run({"video": node("FlashLipsLoadVideo", path=str(path))}, "video").errors["video"]

    assert "There is no file at /nowhere/clip.mp4" in said("/nowhere/clip.mp4")
    assert "No path is given" in said("")
    (tmp_path / "empty.mp4").touch()
    assert "empty.mp4" in said(tmp_path / "empty.mp4")


@pytest.mark.comfy
def test_a_changed_file_is_loaded_again(engine, clip, plain_clip) -> None:
    prompt = {"video": node("FlashLipsLoadVideo", path=str(plain_clip))}
    engine.run(prompt, "video")
    assert "video" in engine.run(prompt, "video").cached
    clip(size=(32, 32))
    run = engine.run(prompt, "video")
    assert "video" not in run.cached and run.outputs["video"][0].width == 32


@pytest.mark.comfy
def test_saving_copies_a_files_packets_and_keeps_the_workflow(engine, talking_clip) -> None:
    prompt = {
        "video": node("FlashLipsLoadVideo", path=str(talking_clip)),
        "save": node("FlashLipsSaveVideo", video=["video", 0], filename_prefix="a/b"),
    }
    out = saved(engine, engine.run(prompt))
    assert out.parent == engine.base / "output" / "a" and packets(out) == packets(talking_clip)
    assert json.loads(tags(out)["prompt"])["save"]["class_type"] == "FlashLipsSaveVideo"
    assert not list((engine.base / "output").rglob("*.part"))


@pytest.mark.comfy
def test_trimmed_videos_and_those_of_images_are_saved_too(engine, talking_clip) -> None:
    before = temporary(engine)
    prompt = {
        "video": node("FlashLipsLoadVideo", path=str(talking_clip)),
        "trim": node("Video Slice", video=["video", 0], start_time=0.2, duration=0.4, strict_duration=False),
        "save": node("FlashLipsSaveVideo", video=["trim", 0]),
    }
    out = saved(engine, engine.run(prompt))
    assert probe(out).num_frames == 10 and abs(float(load_audio(out).duration) - 0.4) < 0.1
    prompt["parts"] = node("GetVideoComponents", video=["trim", 0])
    prompt["made"] = node("CreateVideo", images=["parts", 0], fps=24.0, audio=["parts", 1])
    prompt["save"] = node("FlashLipsSaveVideo", video=["made", 0], codec="h265", container="mkv")
    run = engine.run(prompt, "parts")
    out = saved(engine, run)
    assert (probe(out).num_frames, probe(out).fps, out.suffix) == (len(run.outputs["parts"][0]), 24, ".mkv")
    assert temporary(engine) == before


@pytest.mark.comfy
def test_a_part_of_a_clip_is_written_once_for_all_who_read_it(engine, clip) -> None:
    before = parts(engine)
    source = clip(name="long.mp4", audio_rate=44_100)
    trim = node("Video Slice", video=["video", 0], start_time=0.2, duration=0.4, strict_duration=False)
    prompt = {"video": node("FlashLipsLoadVideo", path=str(source)), "trim": trim}
    prompt |= {name: node("FlashLipsSaveVideo", video=["trim", 0], filename_prefix=name) for name in ("one", "two")}
    assert engine.run(prompt).is_success
    [made] = set(parts(engine)) - set(before)
    written = made.stat().st_mtime_ns
    prompt["three"] = node("FlashLipsSaveVideo", video=["trim", 0], filename_prefix="three")
    assert engine.run(prompt).is_success
    assert made.stat().st_mtime_ns == written and probe(made).num_frames == 10
    trim["inputs"]["duration"] = 0.2  # another part
    assert engine.run(prompt).is_success
    clip(name="long.mp4", size=(32, 32), audio_rate=44_100)  # another clip of that name
    assert engine.run(prompt).is_success
    assert len(set(parts(engine)) - set(before)) == 3


SOUND = """
import gc, sys

def kept(path):
    [bridge] = [module for name, module in sys.modules.items() if name.endswith("nodes.bridge") and hasattr(module, "FileAudio")]
    decoded, load = [], bridge.load_audio
    bridge.load_audio = lambda path: decoded.append(path) or load(path)
    try:
        audio = bridge.FileAudio(path)
        found = [dict.fromkeys(audio), len(decoded), audio["sample_rate"], bridge.audio_of(audio).duration]
        first = audio["waveform"]
        found += [len(decoded), audio["waveform"] is first, tuple(first.shape)]
        del first
        gc.collect()
        return found + [audio["waveform"].shape[-1], len(decoded), "volume" in audio]
    finally:
        bridge.load_audio = load
"""


@pytest.mark.comfy
def test_sound_is_decoded_only_when_its_waveform_is_asked_for(engine, talking_clip, tmp_path) -> None:
    (tmp_path / "code.py").write_text(SOUND)
    names, before, rate, duration, once, is_same, shape, again, twice, other = engine.call(
        f"{tmp_path / 'code.py'}:kept", path=str(talking_clip)
    )
    whole = load_audio(talking_clip)
    assert list(names) == ["waveform", "sample_rate"] and (before, rate, duration) == (0, 44_100, whole.duration)
    assert (once, is_same, shape) == (1, True, [1, *whole.samples.shape])
    assert (again, twice, other) == (whole.samples.shape[1], 2, False)


@pytest.mark.comfy
def test_core_nodes_take_the_sound_of_a_loaded_file(engine, talking_clip) -> None:
    prompt = {"video": node("FlashLipsLoadVideo", path=str(talking_clip))}
    prompt["sound"] = node("TrimAudioDuration", audio=["video", 1], start_index=0.0, duration=0.5)
    prompt["grey"] = node("EmptyImage", width=64, height=64, batch_size=5, color=0x808080)
    prompt["made"] = node("CreateVideo", images=["grey", 0], fps=25.0, audio=["video", 1])
    prompt["save"] = node("FlashLipsSaveVideo", video=["made", 0])
    run = engine.run(prompt, "sound")
    assert probe(saved(engine, run)).audio_rate == 44_100
    assert run.outputs["sound"][0]["waveform"].shape == (1, 2, 22_050)


UPLOADED = """
import io
from comfy_api.latest import InputImpl

def video(start_time=0, duration=0):
    return InputImpl.VideoFromFile(io.BytesIO(open({path!r}, "rb").read()), start_time=start_time, duration=duration)

def trimmed():
    return video(0.2, 0.4)
"""


@pytest.mark.comfy
def test_videos_in_memory_are_saved_as_files_are(engine, talking_clip, tmp_path) -> None:
    before = temporary(engine)
    (tmp_path / "code.py").write_text(UPLOADED.format(path=str(talking_clip)))
    prompt = {
        "video": node("TestMake", code=f"{tmp_path / 'code.py'}:video"),
        "save": node("FlashLipsSaveVideo", video=["video", 0]),
    }
    assert packets(saved(engine, engine.run(prompt))) == packets(talking_clip)
    prompt["video"] = node("TestMake", code=f"{tmp_path / 'code.py'}:trimmed")
    assert probe(saved(engine, engine.run(prompt))).num_frames == 10
    assert temporary(engine) == before


@pytest.mark.comfy
def test_a_trimmed_file_that_is_gone_is_one_sentence(engine, talking_clip, tmp_path) -> None:
    gone = tmp_path / "gone.mp4"
    (tmp_path / "code.py").write_text(UPLOADED.replace('io.BytesIO(open({path!r}, "rb").read())', repr(str(gone))))
    prompt = {
        "video": node("TestMake", code=f"{tmp_path / 'code.py'}:trimmed"),
        "save": node("FlashLipsSaveVideo", video=["video", 0]),
    }
    assert f"No file at {gone}; check the path." in engine.run(prompt).errors["save"]


@pytest.mark.comfy
def test_other_sound_replaces_the_videos_own(engine, talking_clip) -> None:
    prompt = {
        "video": node("FlashLipsLoadVideo", path=str(talking_clip)),
        "sound": node("EmptyAudio", duration=1.0, sample_rate=16_000, channels=1),
        "save": node("FlashLipsSaveVideo", video=["video", 0], audio=["sound", 0]),
    }
    out = saved(engine, engine.run(prompt))
    assert probe(out).audio_rate == 16_000 and packets(out) == packets(talking_clip)
