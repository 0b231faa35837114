"""Sound that FFmpeg does not know, such as a phone's spatial recording, must not keep the picture from being read or written."""

import pytest

from flashlips_core.media import load_audio, probe, read_frames, write_video
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
