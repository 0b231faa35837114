"""The pipeline with real networks at toy sizes: files in and out, faceless frames, progress, interruption."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from toy_dubs import CROP_PX, QUICK, SteadyFace, make_poses, make_track, planes_of, toy_networks

from flashlips_core import checkpoint
from flashlips_core.editing import CropEditor, FrameRows
from flashlips_core.media import probe, read_frames
from flashlips_core.pipeline import PROVENANCE, LipSync, Report
from flashlips_core.sidecar import load_poses, load_track, save_poses, save_track
from flashlips_core.steps import DubSettings
from flashlips_core.types import Audio, FlashLipsError


def test_a_dub_moves_the_lips_by_its_gain_away_from_rest(lipsync, talking_clip, plain_clip, tmp_path, monkeypatch):
    asked = {}

    def edit_video(video, track, poses, out, settings, **_):
        asked[settings.gain] = poses
        return Report(str(out))

    monkeypatch.setattr(lipsync, "edit_video", edit_video)
    for gain in (1.0, 2.0):
        lipsync.dub(plain_clip, talking_clip, tmp_path / "out.mp4", track=make_track(), gain=gain)
    rest = lipsync.pose_model.rest_pose
    torch.testing.assert_close(asked[2.0].values - rest, 2 * (asked[1.0].values - rest), rtol=1e-4, atol=1e-4)
    assert (asked[1.0].values - rest).abs().max() > 0.1
    lipsync.dub(plain_clip, talking_clip, tmp_path / "out.mp4", track=make_track(), poses=make_poses(), gain=3.0)
    assert torch.equal(asked[3.0].values, make_poses().values)  # given ones are used as they are


def test_frames_without_a_face_pass_through_and_are_counted(lipsync, plain_clip, tmp_path):
    absent = (0, 1, 2, 3, 4, 11, 24)
    how = {"crf": 0, "start": "frame", **QUICK}  # a laid mouth of this still clip could be the frame's own
    report = lipsync.edit_video(plain_clip, make_track(absent=absent), make_poses(), tmp_path / "out.mkv", **how)
    before, after = planes_of(plain_clip), planes_of(tmp_path / "out.mkv")
    assert (report.frames, report.edited, report.without_face) == (25, 18, 7)
    assert [i for i in range(25) if np.array_equal(before[i][0], after[i][0])] == list(absent)


def test_the_report_names_references_and_the_seconds_of_every_stage(lipsync, plain_clip, tmp_path):
    report = lipsync.edit_video(plain_clip, make_track(), make_poses(), tmp_path / "out.mp4", start="frame", **QUICK)
    assert len(report.references) == lipsync.editor.num_references and report.total_s > 0
    stages = {
        "choose references",
        "references",
        "read",
        "cut",
        "encode crop",
        "edit",
        "alpha",
        "decode crop",
        "paste",
        "encode video",
    }
    assert set(report.seconds) == stages and all(s > 0 for s in report.seconds.values())
    assert report.as_dict()["frames_per_second"] == pytest.approx(25 / report.total_s)


def test_output_says_that_it_is_synthetic_unless_told_not_to(lipsync, plain_clip, tmp_path):
    import av

    tags = {}
    for is_tagged in (True, False):
        lipsync.edit_video(plain_clip, make_track(), make_poses(), tmp_path / "out.mp4", is_tagged=is_tagged, **QUICK)
        with av.open(str(tmp_path / "out.mp4")) as file:
            tags[is_tagged] = file.metadata.get("comment", "")
    assert tags == {True: PROVENANCE["comment"], False: ""}


def test_a_stage_1_editor_runs_masked_only_and_changes_the_lower_face_alone(model_folder, plain_clip, tmp_path):
    checkpoint.save(toy_networks()["editor"], tmp_path / "stage_1.safetensors", "editor-masked", {"crop_px": CROP_PX})
    masked = LipSync.load(model_folder, device="cpu", editor=tmp_path / "stage_1.safetensors")
    track = make_track()
    with pytest.raises(FlashLipsError, match="use mode 'masked'"):
        masked.prepared(masked.look(plain_clip, track, given=[0]))
    editor = masked.prepared(masked.look(plain_clip, track, given=[0]), DubSettings(mode="masked"))
    crops = masked.look(plain_clip, track, given=[3, 8]).references
    _, alpha = editor(crops, make_poses().values[[3, 8]])
    assert alpha[..., 40:, 16:48].amax() > 0
    with torch.inference_mode():
        source = masked.codec.encode(crops)
        edited = editor.edit(source, make_poses().values[[3, 8]])
    assert torch.equal(edited[..., :3, :], source[..., :3, :]) and not torch.equal(edited[..., 5:, 2:6], source[..., 5:, 2:6])


def test_given_poses_need_no_sound_and_keep_the_clips_own(lipsync, talking_clip, plain_clip, tmp_path):
    for clip in (talking_clip, plain_clip):
        report = lipsync.dub(clip, None, tmp_path / "out.mp4", track=make_track(), poses=make_poses(), **QUICK)
        assert report.edited == 25 and "sound to poses" not in report.seconds
        assert probe(tmp_path / "out.mp4").audio_rate == probe(clip).audio_rate


def test_progress_counts_every_frame_and_stopping_in_it_leaves_no_file(lipsync, plain_clip, tmp_path):
    calls = []
    lipsync.edit_video(
        plain_clip, make_track(), make_poses(), tmp_path / "whole.mp4", progress=lambda *a: calls.append(a), **QUICK
    )
    assert list(dict.fromkeys(calls)) == [(i, 25) for i in range(26)] and calls == sorted(calls)

    def stop(done, total):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lipsync.edit_video(plain_clip, make_track(), make_poses(), tmp_path / "stopped.mp4", progress=stop, **QUICK)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4", "whole.mp4"]
    assert not [t for t in threading.enumerate() if t.name == "flashlips-prefetch"]


def test_slow_networks_do_not_keep_a_user_from_stopping(lipsync, plain_clip, tmp_path, monkeypatch):
    """Progress is called before each reference is encoded, and while the first batch is edited."""
    edit_crops, counts, told = CropEditor.__call__, [], []

    def slow(self, *given, **others):
        told.append(counts.count(0))
        time.sleep(0.6)
        return edit_crops(self, *given, **others)

    monkeypatch.setattr(CropEditor, "__call__", slow)
    track, poses, out = make_track(4), make_poses(4), tmp_path / "out.mp4"
    lipsync.edit_video(
        plain_clip,
        track,
        poses,
        out,
        references=[0, 1, 2],
        progress=lambda done, _: counts.append(done),
        batch=4,
        crf=30,
        start="frame",
    )
    assert told[0] >= 4  # one for the lip encoder's only batch, three for the references
    assert counts.count(0) - told[0] >= 3 and counts[-1] == 4


def test_uneven_frames_get_the_pose_of_their_own_time(lipsync, variable_rate_clip, tmp_path):
    frames = list(read_frames(variable_rate_clip))
    clip = probe(variable_rate_clip)
    assert clip.is_variable_rate
    track = make_track(len(frames), fps=clip.fps)
    poses = make_poses(30)
    from flashlips_core.editing import _poses_of
    from flashlips_core.poses.motion import at_times

    rows = FrameRows(track.boxes, track.present, poses, clip)
    given = _poses_of(frames, np.arange(len(frames)), rows, frames[0].pts)
    middle = [float(f.pts * clip.time_base) + 0.5 / float(clip.fps) for f in frames]
    assert torch.allclose(given, at_times(poses, torch.tensor(middle)), atol=1e-5)
    lipsync.edit_video(variable_rate_clip, track, poses, tmp_path / "out.mp4", **QUICK)
    assert [f.pts for f in read_frames(tmp_path / "out.mp4")] == [f.pts for f in frames]


@pytest.mark.parametrize(("length", "frames"), [("cut", 25), ("loop", 50), ("ping-pong", 50), ("hold", 50), ("silence", 25)])
def test_longer_sound_is_fitted_as_chosen(lipsync, plain_clip, tmp_path, length, frames):
    voice = Audio(torch.sin(torch.arange(32_000) / 20)[None], 16_000)
    report = lipsync.dub(plain_clip, voice, tmp_path / "out.mp4", track=make_track(), length=length, **QUICK)
    assert report.frames == frames == len(planes_of(tmp_path / "out.mp4"))


def test_dubbing_reports_progress_over_its_passes_and_what_each_is(lipsync, talking_clip, tmp_path, model_folder):
    calls, stages = [], []
    dubber = LipSync.load(model_folder, device="cpu", detector=SteadyFace())
    told = {"progress": lambda *a: calls.append(a), "stage": lambda *a: stages.append(a)}
    report = dubber.dub(talking_clip, talking_clip, tmp_path / "out.mp4", **told, **QUICK)
    words = ["Finding the face", "Choosing references", "Making the lip motion", "Editing frames"]
    assert stages == list(zip(words, (25, 25, 0, 25), strict=True))
    counts = [count for count, _ in calls]
    assert counts == sorted(counts) and set(counts) >= set(range(25, 76)) and calls[-1] == (75, 75)
    assert report.edited == 25 and {"track", "sound to poses"} <= set(report.seconds)
    assert probe(tmp_path / "out.mp4").audio_rate == 44_100


def test_poses_from_a_video_are_the_lip_encoders_and_interpolated_where_no_face_is(lipsync, plain_clip):
    track = make_track(absent=(5, 6))
    poses = lipsync.poses_from_video(plain_clip, track)
    alone = lipsync.encode_lips(lipsync.look(plain_clip, track, given=[4, 7]).references)
    assert len(poses) == 25 and poses.fps == 25
    assert torch.allclose(poses.values[[4, 7]], alone, atol=1e-5)
    assert torch.allclose(poses.values[5], torch.lerp(poses.values[4], poses.values[7], 1 / 3), atol=1e-5)


def test_one_frame_shows_no_range_that_motion_could_be_fitted_to(lipsync):
    poses = make_poses()
    assert lipsync.fitted(poses, torch.zeros(1, 12)) is poses


def test_silence_gives_the_rest_pose(lipsync):
    poses = lipsync.poses_from_audio(Audio(torch.zeros(1, 16_000), 16_000))
    assert len(poses) == 25 and torch.allclose(poses.values, lipsync.pose_model.rest_pose.expand(25, 12), atol=1e-4)


def test_a_track_of_another_clip_is_refused(lipsync, plain_clip, tmp_path):
    with pytest.raises(FlashLipsError, match="track this file again"):
        lipsync.edit_video(plain_clip, make_track(size=(640, 480)), make_poses(), tmp_path / "out.mp4")
    with pytest.raises(FlashLipsError, match="No face in any frame"):
        lipsync.edit_video(plain_clip, make_track(absent=tuple(range(25))), make_poses(), tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


def test_tracks_and_poses_survive_a_round_trip_through_files(tmp_path):
    track, poses = make_track(absent=(3,), fps=Fraction(30_000, 1001)), make_poses()
    save_track(track, tmp_path / "track.safetensors")
    save_poses(poses, tmp_path / "poses.safetensors")
    again = load_track(tmp_path / "track.safetensors")
    assert again.fps == track.fps and all(
        np.array_equal(getattr(again, n), getattr(track, n)) for n in ("boxes", "points", "present")
    )
    assert torch.equal(load_poses(tmp_path / "poses.safetensors").values, poses.values)
    assert again.roll is again.landmarks is again.scene is None and not again.squares[:, 4].any()  # as old files have it
    with pytest.raises(FlashLipsError, match="holds 'poses', but 'track'"):
        load_track(tmp_path / "poses.safetensors")


def test_a_turned_track_keeps_roll_landmarks_and_scenes_in_its_file(tmp_path):
    rng, track = np.random.default_rng(0), make_track(7, absent=(2,))
    more = {"roll": rng.normal(size=7), "landmarks": rng.normal(size=(7, 99, 2)), "scene": np.arange(7) // 4}
    kinds = {"roll": np.float32, "landmarks": np.float32, "scene": np.int32}
    track = replace(track, **{name: values.astype(kinds[name]) for name, values in more.items()})
    save_track(track, tmp_path / "track.safetensors")
    again = load_track(tmp_path / "track.safetensors")
    assert again.arrays().keys() == track.arrays().keys() == {"boxes", "points", "present", "roll", "landmarks", "scene"}
    for name, values in track.arrays().items():
        assert np.array_equal(getattr(again, name), values) and getattr(again, name).dtype == values.dtype
    assert np.array_equal(again.squares, track.squares) and np.array_equal(again.squares[:, 4], track.roll)
