"""Sound that stays in its file while it is used, and sound that FFmpeg does not know, which must not keep a clip from use."""

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from conftest import tone

from flashlips_core.audio import to_mono_16k
from flashlips_core.media import load_audio, open_sound, probe, read_frames, write_video
from flashlips_core.types import FlashLipsError


@pytest.fixture
def strange_clip(talking_clip, tmp_path):
    """A clip whose sound has a codec that nobody knows."""
    data = bytearray(talking_clip.read_bytes().replace(b"mp4a", b"zzzz"))
    described = data.index(b"\x04\x80\x80\x80", data.index(b"esds"))  # MPEG-4's decoder description: tag, length, codec
    data[described + 5] = 0xFE
    path = tmp_path / "strange.mp4"
    path.write_bytes(data)
    return path


def test_a_clip_with_unknown_sound_is_read_as_a_silent_one(strange_clip):
    clip = probe(strange_clip)
    assert clip.audio_rate is None and len(list(read_frames(strange_clip))) == clip.num_frames
    with pytest.raises(FlashLipsError, match="no audio stream"):
        load_audio(strange_clip)


def test_a_clip_with_unknown_sound_is_written_without_it(strange_clip, tmp_path):
    out = tmp_path / "out.mp4"
    write_video(out, read_frames(strange_clip), probe(strange_clip), keep_audio_from=strange_clip)
    assert probe(out).num_frames == probe(strange_clip).num_frames and probe(out).audio_rate is None


# ---- sound that stays in its file ------------------------------------------------------------------------------------------


def joined(sound) -> torch.Tensor:
    return torch.cat(list(sound.pieces()), dim=1)


def test_a_sound_file_is_heard_in_small_pieces_as_often_as_asked_and_is_the_whole(talking_clip):
    sound, whole = open_sound(talking_clip), load_audio(talking_clip)
    assert (sound.sample_rate, sound.channels, sound.duration) == (whole.sample_rate, whole.channels, whole.duration)
    assert torch.equal(joined(sound), whole.samples) and torch.equal(joined(sound), whole.samples)
    assert max(piece.shape[1] for piece in sound.pieces()) <= 4096
    later = replace(sound, skipped=5000, num_samples=sound.num_samples - 5000)
    assert torch.equal(joined(later), whole.samples[:, 5000:])
    assert torch.equal(to_mono_16k(sound), to_mono_16k(whole))


@pytest.mark.parametrize("seconds", [Fraction(1, 2), Fraction(2)], ids=["cut to the picture", "padded with silence"])
def test_sound_written_from_its_file_is_that_written_from_memory(clip, plain_clip, tmp_path, seconds):
    voice = clip(name="voice.wav", size=None, audio_rate=22_050, audio_channels=1, audio_codec="pcm_s16le", audio_s=seconds)
    for name, sound in (("file.mkv", open_sound(voice)), ("memory.mkv", load_audio(voice))):
        write_video(tmp_path / name, read_frames(plain_clip), probe(plain_clip), sound)
    streamed = load_audio(tmp_path / "file.mkv")
    assert torch.equal(streamed.samples, load_audio(tmp_path / "memory.mkv").samples) and streamed.duration == 1
    assert (streamed.samples[:, 11_025:].abs().max() > 0) == (seconds > 1)


def test_a_sound_file_is_judged_when_it_is_opened(clip, plain_clip, tmp_path):
    with pytest.raises(FlashLipsError, match="no audio stream"):
        open_sound(plain_clip)
    path = tmp_path / "nan.wav"
    samples = tone(16_000, 1, Fraction(1))
    samples[0, 9000] = np.nan
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_f32le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, "flt", "mono")
        frame.sample_rate = 16_000
        output.mux(stream.encode(frame))
    with pytest.raises(FlashLipsError, match="nan.wav holds samples that are not numbers"):
        open_sound(path)
