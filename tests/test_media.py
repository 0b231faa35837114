"""Reading, writing and fitting clips; every clip is synthesised, every file is read back by the library itself or PyAV."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from conftest import NUM_FRAMES, picture_planes, same_frames, tone

from flashlips_core.media import load_audio, probe, read_frames, write_video
from flashlips_core.media.planes import Orientation, planar
from flashlips_core.media.pyav import fraction
from flashlips_core.media.read import read_from
from flashlips_core.types import Audio, FlashLipsError


def seconds(frames, time_base) -> list[Fraction]:
    return [frame.pts * time_base for frame in frames]


def audio_packets(path) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        return [(packet.pts * packet.time_base, bytes(packet)) for packet in container.demux(audio=0) if packet.pts is not None]


def test_a_plain_clip_is_described_by_its_header(talking_clip):
    info = probe(talking_clip)
    assert (info.width, info.height, info.num_frames, info.rotation) == (64, 48, NUM_FRAMES, 0)
    assert (info.fps, info.duration, info.time_base) == (25, 1, Fraction(1, 90_000))
    assert (info.pix_fmt, info.color_range, info.colorspace, info.color_primaries, info.color_trc) == ("yuv420p", 1, 1, 1, 1)
    assert (info.audio_rate, info.audio_channels, info.is_variable_rate) == (44_100, 2, False)


def test_frames_are_the_planes_that_were_coded(plain_clip):
    for index, frame in enumerate(read_frames(plain_clip)):
        for got, wanted in zip(frame.planes, picture_planes(index, 64, 48, "yuv420p"), strict=True):
            np.testing.assert_array_equal(got, wanted)
        assert frame.pts == index * 3600
        assert not any(plane.flags.writeable for plane in frame.planes)


def test_a_range_of_frames_is_that_part_of_the_clip(plain_clip):
    whole = list(read_frames(plain_clip))
    assert same_frames(list(read_frames(plain_clip, 7, 12)), whole[7:12])
    assert same_frames(list(read_frames(plain_clip, 20)), whole[20:])
    assert list(read_frames(plain_clip, 30)) == []


@pytest.mark.parametrize("name", ["seek.mp4", "seek.mkv", "seek.ts", "seek.avi"])
def test_entering_a_clip_in_the_middle_gives_the_frames_of_a_full_read(clip, name):
    path = clip(name=name, time_base=Fraction(1, 25), pts=tuple(range(NUM_FRAMES)))
    whole = list(read_frames(path))
    for start in (1, 9, 13, 24):
        entered = list(read_from(path, start, start + 4, whole[start].pts))
        assert same_frames(entered, whole[start : start + 4])
        assert [frame.pts for frame in entered] == [frame.pts for frame in whole[start : start + 4]]


@pytest.mark.parametrize("counter_clockwise", [-90, 90, 180])
def test_rotated_clips_are_read_upright(clip, counter_clockwise):
    path = clip(rotation=counter_clockwise)
    info, frame = probe(path), next(read_frames(path))
    stored = picture_planes(0, 64, 48, "yuv420p")
    for got, wanted in zip(frame.planes, stored, strict=True):
        np.testing.assert_array_equal(got, np.rot90(wanted, counter_clockwise // 90))
    assert info.rotation == -counter_clockwise % 360
    assert (info.width, info.height) == (frame.width, frame.height) == ((64, 48) if counter_clockwise == 180 else (48, 64))


def test_a_mirrored_clip_is_read_as_it_is_shown(clip):
    frame = next(read_frames(clip(is_mirrored=True)))
    np.testing.assert_array_equal(frame.planes[0], picture_planes(0, 64, 48, "yuv420p")[0][:, ::-1])


def test_a_rotated_clip_with_half_width_chroma_becomes_full_chroma(clip):
    path = clip(rotation=-90, pix_fmt="yuv422p10le")
    frame = next(read_frames(path))
    assert (frame.pix_fmt, probe(path).pix_fmt, frame.chroma_shift) == ("yuv444p10le", "yuv444p10le", (0, 0))
    stored = picture_planes(0, 64, 48, "yuv422p10le")[2]
    np.testing.assert_allclose(
        np.rot90(frame.planes[2], 1)[:, ::2].astype(int), stored.astype(int), atol=2
    )  # 10-bit crf 0 loses a little


@pytest.mark.parametrize(
    ("pix_fmt", "wanted"),
    [
        ("nv12", "yuv420p"),
        ("yuyv422", "yuv422p"),
        ("p010le", "yuv420p10le"),
        ("yuv411p", "yuv422p"),
        ("yuv410p", "yuv420p"),
        ("yuva420p", "yuv420p"),
        ("yuv420p10be", "yuv420p10le"),
        ("yuv440p", "yuv440p"),
        ("yuv444p12le", "yuv444p12le"),
    ],
)
@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_every_layout_becomes_planar_yuv_of_the_same_depth(pix_fmt, wanted, size):
    levels = [180, 90, 150]  # Y, U, V of a flat picture
    flat = av.VideoFrame.from_ndarray(np.stack([np.full(size[::-1], level, np.uint8) for level in levels]), "yuv444p")
    planes, layout = planar(flat.reformat(format=pix_fmt), Orientation())
    assert layout.name == wanted
    high, wide = -(-size[1] >> layout.shift[1]), -(-size[0] >> layout.shift[0])
    assert [plane.shape for plane in planes] == [size[::-1], (high, wide), (high, wide)]
    for plane, level in zip(planes, levels, strict=True):
        np.testing.assert_allclose(plane / (1 << (layout.depth - 8)), level, atol=1)


def test_gray_pictures_get_neutral_chroma():
    luma = np.arange(48 * 64, dtype=np.uint8).reshape(48, 64)
    planes, layout = planar(av.VideoFrame.from_ndarray(luma, "gray"), Orientation())
    np.testing.assert_array_equal(planes[0], luma)
    assert layout.name == "yuv420p" and np.all(planes[1] == 128) and planes[2].shape == (24, 32)


@pytest.mark.parametrize(
    ("codec", "pix_fmt"), [("mpeg4", "yuv420p"), ("mjpeg", "yuvj420p"), ("libx265", "yuv420p10le"), ("libvpx-vp9", "yuv420p")]
)
def test_other_codecs_are_read(clip, codec, pix_fmt):
    path = clip(
        name="other.mkv",
        codec=codec,
        pix_fmt=pix_fmt,
        time_base=Fraction(1, 25),
        pts=tuple(range(NUM_FRAMES)),
        color=(2 if "j" in pix_fmt else 1, 1, 1, 1),
    )
    frames = list(read_frames(path))
    assert len(frames) == NUM_FRAMES
    assert (frames[0].pix_fmt, frames[0].color_range) == (pix_fmt.replace("j", ""), 2 if "j" in pix_fmt else 1)
    error = frames[0].planes[0].astype(float) - picture_planes(0, 64, 48, pix_fmt)[0]
    assert np.abs(error).mean() / (1 << (frames[0].bit_depth - 8)) < 8


def test_rgb_video_becomes_tagged_bt709(tmp_path):
    path = tmp_path / "screen.mov"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        red = np.zeros((48, 64, 3), np.uint8)
        red[..., 0] = 255
        output.mux(stream.encode(av.VideoFrame.from_ndarray(red, "rgb24")) + stream.encode())
    frame, info = next(read_frames(path)), probe(path)
    assert (
        (frame.pix_fmt, frame.color_range, frame.colorspace)
        == (info.pix_fmt, info.color_range, info.colorspace)
        == ("yuv444p", 1, 1)
    )
    assert [int(plane[0, 0]) for plane in frame.planes] == pytest.approx([63, 102, 240], abs=1)  # BT.709 limited range red


def test_a_cover_image_is_not_a_video_stream(clip, tmp_path):
    path = tmp_path / "song.m4a"
    with (
        av.open(str(clip(name="v.m4a", size=None, audio_rate=44_100))) as source,
        av.open(str(path), "w", format="mp4") as output,
    ):
        cover = output.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        sound = output.add_stream_from_template(source.streams.audio[0])
        output.mux(cover.encode(av.VideoFrame(64, 48, "yuvj420p")) + cover.encode())
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = sound
                output.mux(packet)
    with pytest.raises(FlashLipsError, match="no video stream"):
        probe(path)


def test_a_variable_frame_rate_is_noticed(variable_rate_clip, plain_clip):
    assert probe(variable_rate_clip).is_variable_rate
    assert not probe(plain_clip).is_variable_rate


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_variable_timestamps_survive_exactly(variable_rate_clip, tmp_path, suffix):
    info, frames = probe(variable_rate_clip), list(read_frames(variable_rate_clip))
    frames = [dataclasses.replace(frame, pts=frame.pts + 7) for frame in frames]  # a start that is not a round millisecond
    path = tmp_path / f"out{suffix}"
    write_video(path, frames, info, crf=0)
    written = list(read_frames(path))
    assert seconds(written, probe(path).time_base) == seconds(frames, info.time_base)
    assert same_frames(written, frames)
    nominal = round(1 / (info.fps * info.time_base))  # ticks that the last frame is shown
    assert probe(path).duration == (frames[-1].pts - frames[0].pts + nominal) * info.time_base


def test_ntsc_timestamps_survive_exactly(clip, tmp_path):
    source = clip(time_base=Fraction(1001, 30_000), rate=Fraction(30_000, 1001), pts=tuple(range(NUM_FRAMES)))
    path = tmp_path / "out.mp4"
    write_video(path, read_frames(source), probe(source))
    assert seconds(read_frames(path), probe(path).time_base) == [index * Fraction(1001, 30_000) for index in range(NUM_FRAMES)]
    assert probe(path).fps == Fraction(30_000, 1001)


def test_matroska_keeps_timestamps_to_the_millisecond(variable_rate_clip, tmp_path):
    info, path = probe(variable_rate_clip), tmp_path / "out.mkv"
    write_video(path, read_frames(variable_rate_clip), info, crf=0)
    for written, source in zip(read_frames(path), read_frames(variable_rate_clip), strict=True):
        assert abs(written.pts * Fraction(1, 1000) - source.pts * info.time_base) <= Fraction(2, 1000)  # two frames shared one


def test_ten_bits_and_colour_tags_survive(clip, tmp_path):
    source = clip(pix_fmt="yuv420p10le", color=(1, 9, 9, 16))
    path = tmp_path / "out.mp4"
    write_video(path, read_frames(source), probe(source), crf=4)
    info, wanted = probe(path), probe(source)
    assert info.pix_fmt == "yuv420p10le"
    for field in ("color_range", "colorspace", "color_primaries", "color_trc", "fps", "num_frames", "width", "height"):
        assert getattr(info, field) == getattr(wanted, field), field
    for written, original in zip(read_frames(path), read_frames(source), strict=True):
        assert np.abs(written.planes[0].astype(int) - original.planes[0]).max() < 24  # of 1023
        assert written.planes[0].max() > 255


def test_full_range_survives(clip, tmp_path):
    source, path = clip(pix_fmt="yuvj420p", color=(2, 5, 1, 1)), tmp_path / "out.mp4"
    write_video(path, read_frames(source), probe(source), crf=0)
    assert (probe(path).color_range, probe(path).pix_fmt, probe(path).colorspace) == (2, "yuv420p", 5)
    assert same_frames(list(read_frames(path)), list(read_frames(source)))


def test_a_rotated_clip_is_written_upright(rotated_clip, tmp_path):
    path = tmp_path / "out.mp4"
    write_video(path, read_frames(rotated_clip), probe(rotated_clip), crf=0)
    info = probe(path)
    assert (info.width, info.height, info.rotation) == (48, 64, 0)
    assert same_frames(list(read_frames(path)), list(read_frames(rotated_clip)))


def test_an_odd_size_stays_exact_and_its_chroma_can_be_halved_back(odd_clip, tmp_path, caplog):
    path = tmp_path / "out.mp4"
    write_video(path, read_frames(odd_clip), probe(odd_clip), crf=0)
    for written, source in zip(read_frames(path), read_frames(odd_clip), strict=True):
        assert (written.width, written.height, written.pix_fmt) == (63, 47, "yuv444p")
        np.testing.assert_array_equal(written.planes[0], source.planes[0])
        np.testing.assert_array_equal(written.planes[1][::2, ::2], source.planes[1])
    assert "exact size" in caplog.text


def test_an_odd_size_stays_as_it_is_where_the_codec_allows_it(odd_clip, tmp_path):
    path = tmp_path / "out.mkv"
    write_video(path, read_frames(odd_clip), probe(odd_clip), codec="ffv1")
    assert same_frames(list(read_frames(path)), list(read_frames(odd_clip)))


def test_twelve_bits_are_rounded_to_what_the_encoder_takes(clip, tmp_path, caplog):
    source = clip(name="deep.mkv", codec="ffv1", pix_fmt="yuv422p12le", color=(1, 1, 1, 1))
    path = tmp_path / "out.mp4"
    write_video(path, read_frames(source), probe(source), crf=0)
    assert probe(path).pix_fmt == "yuv422p10le"
    assert "rounded from 12 bits" in caplog.text
    first, original = next(read_frames(path)), next(read_frames(source))
    assert np.abs(first.planes[0] - original.planes[0] / 4).mean() < 4


@pytest.mark.parametrize(
    ("pix_fmt", "size", "wanted"),
    [
        ("yuv444p", (64, 48), ("h264", "yuv420p", (64, 48))),
        ("yuv422p", (64, 48), ("h264", "yuv420p", (64, 48))),
        ("yuv420p", (63, 47), ("h264", "yuv420p", (64, 48))),
        ("yuv444p12le", (63, 47), ("hevc", "yuv420p10le", (64, 48))),
    ],
)
def test_what_is_not_lossless_is_what_players_open(clip, tmp_path, caplog, pix_fmt, size, wanted):
    grid = {"time_base": Fraction(1, 1000), "pts": tuple(range(0, 1000, 40))}
    source, path = clip(name="odd.mkv", codec="ffv1", pix_fmt=pix_fmt, size=size, **grid), tmp_path / "out.mp4"
    write_video(path, read_frames(source), probe(source), crf=1)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, (context.width, context.height)) == wanted
        assert context.codec_tag == {"h264": "avc1", "hevc": "hvc1"}[wanted[0]]
    assert "--crf 0 keeps" in caplog.text
    depth = 10 if "10" in wanted[1] else 8
    for written, original in zip(read_frames(path), read_frames(source), strict=True):
        luma = original.planes[0] / (1 << (original.bit_depth - depth))
        assert np.abs(written.planes[0][: size[1], : size[0]] - luma).mean() < 2 << (depth - 8)
        colours = [np.mean(plane) / (1 << (f.bit_depth - depth)) for f in (written, original) for plane in f.planes[1:]]
        assert colours[:2] == pytest.approx(colours[2:], abs=2 << (depth - 8))
        repeated = written.planes[0][-1].astype(float) - written.planes[0][size[1] - 1]
        assert np.abs(repeated).mean() < 4 << (depth - 8)


def test_anamorphic_video_keeps_its_pixel_shape(clip, tmp_path):
    source, path = clip(aspect=Fraction(16, 11)), tmp_path / "out.mp4"
    write_video(path, read_frames(source), probe(source))
    with av.open(str(path)) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 11)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_kept_audio_is_the_same_packets(talking_clip, tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    write_video(path, read_frames(talking_clip), probe(talking_clip), keep_audio_from=talking_clip)
    assert [packet for _, packet in audio_packets(path)] == [packet for _, packet in audio_packets(talking_clip)]
    if suffix != ".mkv":  # Matroska forgets AAC's lead-in; there the sound lies within a millisecond
        assert torch.equal(load_audio(path).samples, load_audio(talking_clip).samples)
    lead = audio_packets(path)[0][0] - next(read_frames(path)).pts * probe(path).time_base
    assert abs(lead - audio_packets(talking_clip)[0][0]) < Fraction(1, 1000)
    assert (probe(path).audio_rate, probe(path).audio_channels) == (44_100, 2)


def test_kept_audio_keeps_its_place_beside_the_picture(clip, tmp_path):
    source = clip(name="late.mp4", pts=tuple(range(18_000, 108_000, 3600)), audio_rate=48_000)  # the picture starts at 0.2 s
    path = tmp_path / "out.mp4"
    write_video(path, read_frames(source), probe(source), keep_audio_from=source)
    assert audio_packets(path) == audio_packets(source)
    assert next(read_frames(path)).pts * probe(path).time_base == Fraction(1, 5)


def test_audio_kept_from_another_file_starts_with_the_picture(clip, audio_only, tmp_path):
    source = clip(pts=tuple(range(90_000, 180_000, 3600)))
    path = tmp_path / "out.mp4"
    write_video(path, read_frames(source), probe(source), keep_audio_from=audio_only)
    got, wanted = load_audio(path).samples, load_audio(audio_only).samples
    assert torch.allclose(got[:, 5000:40_000], wanted[:, 5000:40_000], atol=1e-5)


def test_broadcast_time_is_counted_from_zero(clip, tmp_path):
    source, path = (
        clip(name="tv.ts", pts=tuple(range(900_000, 990_000, 3600)), audio_rate=48_000, audio_start_s=10),
        tmp_path / "out.mp4",
    )
    write_video(path, read_frames(source), probe(source), keep_audio_from=source)
    assert next(read_frames(path)).pts * probe(path).time_base < Fraction(1, 2)
    assert torch.equal(load_audio(path).samples, load_audio(source).samples)


def test_sound_that_a_container_cannot_hold_is_encoded_again(talking_clip, tmp_path, caplog):
    path = tmp_path / "out.webm"
    write_video(path, read_frames(talking_clip), probe(talking_clip), keep_audio_from=talking_clip, crf=40)
    assert "encoded again" in caplog.text
    assert load_audio(path).duration == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("suffix", "tolerance"), [(".mp4", 0.05), (".mov", 1e-4), (".mkv", 1e-4)])
@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (16_000, 1), (48_000, 6)])
def test_new_audio_keeps_its_rate_and_channels_and_place(plain_clip, tmp_path, suffix, tolerance, rate, channels):
    audio = Audio(torch.from_numpy(tone(rate, channels, Fraction(1))), rate)
    path = tmp_path / f"out{suffix}"
    write_video(path, read_frames(plain_clip), probe(plain_clip), audio=audio)
    got = load_audio(path)
    assert (got.sample_rate, got.samples.shape[0]) == (rate, channels)
    middle = slice(rate // 10, -rate // 5)
    error = (got.samples[:, :rate][:, middle] - audio.samples[:, middle])[:3]  # AAC may low-pass the fourth: LFE
    assert error.pow(2).mean().sqrt() < tolerance


@pytest.mark.parametrize("length", [Fraction(1, 2), Fraction(3)])
def test_new_audio_is_cut_or_padded_to_the_picture(plain_clip, tmp_path, length):
    path = tmp_path / "out.mkv"
    write_video(path, read_frames(plain_clip), probe(plain_clip), audio=Audio(torch.from_numpy(tone(48_000, 1, length)), 48_000))
    got = load_audio(path)
    assert got.duration == 1
    assert got.samples[:, 30_000:].abs().max() == (0 if length < 1 else pytest.approx(0.5, abs=0.01))


def test_a_rate_that_aac_lacks_is_raised_with_a_warning(plain_clip, tmp_path, caplog):
    path = tmp_path / "out.mp4"
    write_video(
        path, read_frames(plain_clip), probe(plain_clip), audio=Audio(torch.from_numpy(tone(20_000, 1, Fraction(1))), 20_000)
    )
    assert load_audio(path).sample_rate == 22_050
    assert "resampled to 22050 Hz" in caplog.text


def test_audio_is_decoded_at_its_own_rate(audio_only):
    audio = load_audio(audio_only)
    assert (audio.sample_rate, audio.samples.shape[0], audio.samples.dtype) == (44_100, 2, torch.float32)
    wanted = torch.from_numpy(tone(44_100, 2, Fraction(1)))
    assert (audio.samples[:, 4410:40_000] - wanted[:, 4410:40_000]).pow(2).mean().sqrt() < 0.05


def test_sound_is_lined_up_with_the_first_picture(clip):
    late_picture = clip(name="late.mkv", pts=tuple(range(18_000, 108_000, 3600)), audio_rate=48_000, audio_codec="pcm_s16le")
    samples = load_audio(late_picture).samples
    wanted = torch.from_numpy(tone(48_000, 2, Fraction(1)))[:, 9600:]  # 0.2 s of sound before the picture are dropped
    assert torch.allclose(samples, wanted, atol=1e-4)


def test_the_provenance_tag_is_in_the_container(plain_clip, tmp_path):
    for suffix in (".mp4", ".mkv"):
        path = tmp_path / f"out{suffix}"
        write_video(path, read_frames(plain_clip), probe(plain_clip), metadata={"comment": "lip-synced"})
        with av.open(str(path)) as container:
            assert {key.lower(): value for key, value in container.metadata.items()}["comment"] == "lip-synced"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_stopped_write_leaves_no_file_and_spares_the_old_one(plain_clip, tmp_path, error):
    def broken():
        yield from read_frames(plain_clip, 0, 5)
        raise error

    path = tmp_path / "out.mp4"
    path.write_bytes(b"older result")
    with pytest.raises(error):
        write_video(path, broken(), probe(plain_clip))
    assert path.read_bytes() == b"older result"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(("value", "expected"), [(Fraction(1001, 30_000), Fraction(1001, 30_000)), (None, 0), (Fraction(0), 0)])
def test_rational_numbers_of_any_pyav_are_fractions(value, expected):
    assert fraction(value) == expected and isinstance(fraction(value), Fraction)


@pytest.mark.skipif(not hasattr(av, "AVRational"), reason="PyAV before 19 has Python's fractions")
def test_pyavs_own_numbers_are_fractions():
    assert fraction(av.AVRational(1001, 30_000)) == Fraction(1001, 30_000) and fraction(av.AVRational(0, 1)) == 0
