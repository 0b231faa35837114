"""Files that are damaged, incomplete or unusable: each is refused in one sentence before any work, or read as far as it goes."""

from __future__ import annotations

import logging

import av
import numpy as np
import pytest
import torch
from conftest import NUM_FRAMES, picture_planes

from flashlips_core.media import load_audio, probe, read_frames, write_video
from flashlips_core.types import Audio, FlashLipsError, Frame


def cut_to(path, share: float):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("use", [probe, lambda path: next(read_frames(path)), load_audio])
def test_a_truncated_clip_is_refused_at_once_with_what_can_be_kept(clip, use):
    path = clip(name="cut.mp4", size=(256, 192), audio_rate=44_100, container_options=(("movflags", "faststart"),))
    words = r"^cut.mp4 breaks off: 10 of 25 frames can be read; .* 'ffmpeg -i cut.mp4 -t 0.40 OUT'\.$"
    with pytest.raises(FlashLipsError, match=words):
        use(cut_to(path, 0.5))


def test_a_clip_that_lost_the_end_of_its_sound_alone_is_refused(clip):
    path = clip(name="cut.mp4", audio_rate=44_100, container_options=(("movflags", "faststart"),))
    with pytest.raises(FlashLipsError, match="packets of sound can be read"):
        probe(cut_to(path, 0.99))


@pytest.mark.parametrize("name", ["cut.mkv", "cut.avi", "cut.wav"])
def test_a_file_shorter_than_its_header_says_is_refused_at_once(clip, name):
    is_sound = name.endswith(".wav")
    sound = {"size": None, "audio_rate": 16_000, "audio_codec": "pcm_s16le"}
    path = clip(name=name, **(sound if is_sound else {"size": (256, 192)}))
    with pytest.raises(FlashLipsError, match=r"breaks off: \d+ of \d+ bytes are there"):
        (load_audio if is_sound else probe)(cut_to(path, 0.5))


@pytest.mark.parametrize(("name", "options"), [("cut.flv", ""), ("cut.mp4", "frag_keyframe+empty_moov"), ("cut.ts", "")])
def test_a_stream_that_states_no_length_is_refused_where_its_last_frame_is_damaged(clip, name, options):
    path = clip(name=name, size=(256, 192), container_options=(("movflags", options),) if options else ())
    with pytest.raises(FlashLipsError, match="breaks off: .* can be read"):
        list(read_frames(cut_to(path, 0.5)))


def test_an_unfinished_recording_without_a_stated_length_is_read_to_its_end(clip):
    path = clip(name="live.mkv", container_options=(("live", "1"),))
    assert len(list(read_frames(path))) == NUM_FRAMES


def test_damage_in_the_middle_is_stepped_over_with_one_warning(clip, caplog):
    path = clip(name="hole.mp4", size=(256, 192))
    with av.open(str(path)) as container:
        entry = list(container.streams.video[0].index_entries)[14]
    data = bytearray(path.read_bytes())
    data[entry.pos : entry.pos + entry.size] = b"\xff" * entry.size
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING, "flashlips_core"):
        frames = list(read_frames(path))
    assert NUM_FRAMES - 5 <= len(frames) < NUM_FRAMES
    assert len(caplog.records) == 1 and "damaged" in caplog.text
    np.testing.assert_array_equal(frames[0].planes[0], picture_planes(0, 256, 192, "yuv420p")[0])


def test_bad_inputs_are_one_sentence(clip, headless_clip, audio_only, plain_clip, tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    for path, words in [
        (tmp_path / "missing.mp4", "No file at"),
        (tmp_path, "No file at"),
        (tmp_path / "text.mp4", "cannot be read"),
        (tmp_path / "empty.mp4", "cannot be read"),
        (headless_clip, "cannot be read"),
        (audio_only, "no video stream"),
    ]:
        for use in (probe, lambda bad: list(read_frames(bad))):
            with pytest.raises(FlashLipsError, match=words) as caught:
                use(path)
            assert "\n" not in str(caught.value)
    with pytest.raises(FlashLipsError, match="no audio stream"):
        load_audio(plain_clip)


@pytest.mark.parametrize("samples", [torch.zeros(1, 0), torch.tensor([[0.0, float("nan")]]), torch.tensor([[float("inf")]])])
def test_unusable_audio_is_refused_before_a_file_appears(plain_clip, tmp_path, samples):
    path = tmp_path / "out.mp4"
    with pytest.raises(FlashLipsError, match="zero length|NaN"):
        write_video(path, read_frames(plain_clip), probe(plain_clip), audio=Audio(samples, 16_000))
    assert sorted(tmp_path.iterdir()) == [plain_clip]


def test_unusable_outputs_are_refused(plain_clip, tmp_path):
    info = probe(plain_clip)
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "taken.mp4").write_bytes(b"mine")
    (tmp_path / "mine.mp4.part").write_bytes(b"mine")
    for path, words, options in [
        (plain_clip, "also an input", {}),
        (tmp_path / "nowhere" / "out.mp4", "there is no folder", {}),
        (tmp_path / "folder.mp4", "is a folder", {}),
        (tmp_path / "out.xyz", "suffix", {}),
        (tmp_path / f"{'long' * 70}.mp4", "longer than 255 bytes", {}),
        (tmp_path / "taken.mp4", "exists already", {"overwrite": False}),
        (tmp_path / "out.mp4", "Unknown video encoder", {"codec": "gif"}),
        (tmp_path / "out.webm", "cannot be written|failed", {"codec": "libx264"}),
    ]:
        with pytest.raises(FlashLipsError, match=words):
            write_video(path, read_frames(plain_clip), info, **options)
    with pytest.raises(FlashLipsError, match="no frame"):
        write_video(tmp_path / "out.mp4", [], info)
    assert [part.name for part in tmp_path.glob("*.part")] == ["mine.mp4.part"] and not (tmp_path / "out.mp4").exists()


def test_frames_of_different_sizes_are_refused(plain_clip, tmp_path):
    frames = list(read_frames(plain_clip, 0, 2))
    frames[1] = Frame(tuple(plane[::2] for plane in frames[1].planes), "yuv420p", frames[1].pts)
    with pytest.raises(FlashLipsError, match="64x48"):
        write_video(tmp_path / "out.mp4", frames, probe(plain_clip))
