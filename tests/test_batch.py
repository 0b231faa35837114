"""Many dubs in one run: tables, one sentence for each mistake, shared tracks, stops, deaths, summaries."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
from toy_batches import QUICK, HerePool, job_maker, killer_of_one, pictures, processes_of, same
from toy_dubs import SteadyFace

from flashlips_core import loading, parts
from flashlips_core.batch import places, run
from flashlips_core.batch.jobs import check_jobs, pair_folders, read_table
from flashlips_core.batch.pool import LocalPool
from flashlips_core.batch.work import PART, STATE, Stopped, Worker, WorkerOptions
from flashlips_core.cli import main
from flashlips_core.pipeline import LipSync
from flashlips_core.poses.sampling import SamplerSettings
from flashlips_core.system.locks import alone_with
from flashlips_core.types import FlashLipsError


@pytest.fixture
def steady_face(monkeypatch):
    monkeypatch.setattr(parts, "load_tracker", lambda *a, **k: SteadyFace())


@pytest.fixture
def job(model_folder, talking_clip, tmp_path):
    return job_maker(model_folder, talking_clip, tmp_path)


# ---- tables ----------------------------------------------------------------------------------------------------------------


def test_a_table_of_either_kind_gives_the_same_rows(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "comma.csv").write_text("\ufeffVideo,voice,output,no_gate,seed\na.mp4,b.wav,de/a.mp4,yes,3\n\n", encoding="utf-8")
    (tmp_path / "semicolon.csv").write_text("video;voice;output;no-gate;seed\na.mp4;b.wav;de/a.mp4;true;3\n")
    line = {"video": "a.mp4", "voice": "b.wav", "output": "de/a.mp4", "no_gate": True, "seed": 3, "crf": None}
    (tmp_path / "lines.jsonl").write_text(json.dumps(line) + "\n\n")
    for name in ("comma.csv", "semicolon.csv", "lines.jsonl"):
        (row,) = read_table(str(tmp_path / name))
        assert (row.video, row.voice, row.output) == (
            str(tmp_path / "a.mp4"),
            "b.wav",
            "de/a.mp4",
        )  # only the first lies beside it
        assert row.options["no-gate"] in ("yes", "true") and row.options["seed"] == "3" and "crf" not in row.options


HEAD = "video,voice,output"
BAD_TABLES = {
    "nothing": ("", "no column video and voice and output"),
    "no voice": ("video,output\n{clip},a.mp4", "has no column voice"),
    "empty cell": (HEAD + "\n{clip},,a.mp4", "Line 2 of jobs.csv has no voice"),
    "no job": (HEAD + "\n", "names no job"),
    "too many cells": (HEAD + "\n{clip},{clip},a.mp4,x", "more cells"),
    "unknown option": (HEAD + ",guidence\n{clip},{clip},a.mp4,2", "no option 'guidence'; did you mean 'guidance'?"),
    "a worker's option": (HEAD + ",device\n{clip},{clip},a.mp4,cpu", "no option 'device'"),
    "bad value": (HEAD + ",steps\n{clip},{clip},a.mp4,many", "Line 2 of jobs.csv: Argument --steps"),
    "bad choice": (HEAD + ",length\n{clip},{clip},a.mp4,longer", "Line 2 of jobs.csv: Argument --length"),
    "bad share": (HEAD + ",sharpen\n{clip},{clip},a.mp4,7", "Line 2 of jobs.csv: "),
    "bad flag": (HEAD + ",no-gate\n{clip},{clip},a.mp4,perhaps", "write yes or no"),
    "no file": (HEAD + "\n{clip},nowhere.wav,a.mp4\nnothing.mp4,{clip},b.mp4", "no file at nowhere.wav (1 more"),
    "one output": (
        HEAD + "\n{clip},{clip},a.mp4\n{clip},{clip},A.mp4",
        "Line 3 of jobs.csv and line 2 of jobs.csv have one output",
    ),
    "outside": (HEAD + "\n{clip},{clip},../a.mp4", "does not lie below"),
    "hidden": (HEAD + "\n{clip},{clip},.batch/a.mp4", "does not lie below"),
    "suffix": (HEAD + "\n{clip},{clip},a.txt", "the suffix must be one of"),
    "no model": (HEAD + ",models\n{clip},{clip},a.mp4,nowhere", "No model folder at nowhere"),
    "not UTF-8": (b"\xff\xfe\x00\x01", "cannot be read"),
    "two motions": (HEAD + ",driving,poses\n{clip},,a.mp4,{clip},{clip}", "both driving and poses"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_a_mistake_in_a_table_is_one_sentence_before_anything_is_done(kind, talking_clip, tmp_path, capsys):
    text, sentence = BAD_TABLES[kind]
    table = tmp_path / "jobs.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.replace("{clip}", str(talking_clip)).encode())
    assert main(["batch", str(table), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_is_said(talking_clip, tmp_path, capsys):
    (tmp_path / "jobs.csv").write_text(f"{HEAD}\n{talking_clip},{talking_clip},a.mp4\n")
    assert main(["batch", str(tmp_path / "jobs.csv"), "-o", str(tmp_path / "out"), "--device", "toaster"]) == 2
    assert "device 'toaster' cannot be used" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_written_is_said(talking_clip, tmp_path, capsys):
    (tmp_path / "jobs.csv").write_text(f"{HEAD}\n{talking_clip},{talking_clip},a.mp4\n")
    (tmp_path / "taken").write_text("a file")
    for folder in ("taken", "taken/deeper"):
        assert main(["batch", str(tmp_path / "jobs.csv"), "-o", str(tmp_path / folder)]) == 2
        assert "Cannot write into" in capsys.readouterr().err


def test_a_job_that_would_overwrite_an_input_is_refused(job, tmp_path, talking_clip):
    jobs = {"one": job("talking.mp4")}
    with pytest.raises(FlashLipsError, match="would be destroyed"):
        check_jobs(jobs, str(talking_clip.parent))
    check_jobs(jobs, str(tmp_path / "elsewhere"))


def test_videos_are_paired_with_the_voices_of_each_language(tmp_path, caplog):
    for name in ("films/a.mp4", "films/b.mov", "films/notes.txt", "de/a.wav", "de/b.mp3", "fr/b.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    rows = pair_folders(str(tmp_path / "films"), [str(tmp_path / "de"), str(tmp_path / "fr")])
    assert [row.output for row in rows] == ["de/a.mp4", "de/b.mp4", "fr/b.mp4"]
    assert "1 videos have no voice" in caplog.text and "a.mp4" in caplog.text
    with pytest.raises(FlashLipsError, match="No voice in"):
        pair_folders(str(tmp_path / "films"), [str(tmp_path / "films" / ".." / "films" / ".."), str(tmp_path)])


# ---- the work --------------------------------------------------------------------------------------------------------------


def test_jobs_of_one_video_share_its_track_and_look_and_equal_single_dubs(
    steady_face, job, clip, talking_clip, tmp_path, monkeypatch
):
    short = clip(name="short.m4a", size=None, audio_rate=44_100, audio_s=0.5)
    jobs = [job("a.mkv", track=None), job("b.mkv", track=None, voice=str(short)), job("c.mkv", track=None)]
    calls = []
    for name in ("track", "look"):
        real = getattr(LipSync, name)
        monkeypatch.setattr(LipSync, name, lambda self, *a, _n=name, _r=real, **k: calls.append(_n) or _r(self, *a, **k))
    summary = run.run_batch(jobs, str(tmp_path / "out"), lambda: HerePool(tmp_path / "out"))
    assert summary["done"] == 3 and calls == ["track", "look"]
    lipsync = LipSync.load(**jobs[0].models, device="cpu")
    lipsync.dub(talking_clip, talking_clip, tmp_path / "single.mkv", QUICK)
    assert same(pictures(tmp_path / "out" / "a.mkv"), pictures(tmp_path / "single.mkv"))
    assert same(pictures(tmp_path / "out" / "c.mkv"), pictures(tmp_path / "single.mkv"))
    track = lipsync.track(talking_clip, QUICK)
    lipsync.dub(talking_clip, short, tmp_path / "half.mkv", QUICK, track=track)  # with the track of the longest of them
    assert same(pictures(tmp_path / "out" / "b.mkv"), pictures(tmp_path / "half.mkv"))


def test_a_failed_job_keeps_its_sentence_and_only_it_is_done_again(job, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_text("no sound")
    jobs = [job("a.mkv"), job("b.mkv", voice=str(bad)), job("c.mkv", settings=replace(QUICK, gain=0.5))]
    pool = HerePool(tmp_path / "out")
    summary = run.run_batch(jobs, str(tmp_path / "out"), lambda: pool)
    assert (summary["done"], summary["failed"]) == (2, 1)
    failed = next(row for row in summary["jobs"] if row["state"] == "failed")
    assert failed["output"] == "b.mkv" and "bad.wav" in failed["error"] and not (tmp_path / "out" / "b.mkv").exists()
    page = (tmp_path / "out" / "summary.html").read_text()
    assert page.count("src='data:image/jpeg;base64,") == 3 and "bad.wav" in page and "href='a.mkv'" in page
    before = (tmp_path / "out" / "a.mkv").stat().st_mtime_ns
    bad.write_bytes(Path(jobs[0].voice).read_bytes())
    again, counts = HerePool(tmp_path / "out"), []
    fresh = [job(one.output, voice=one.voice, settings=one.settings) for one in jobs]
    summary = run.run_batch(fresh, str(tmp_path / "out"), lambda: again, lambda done, total: counts.append((done, total)))
    assert summary["done"] == 3 and [label for _, task, label in again.asked if task == "dub"] == ["b.mkv"]
    assert counts == [(2, 3), (3, 3)] and (tmp_path / "out" / "a.mkv").stat().st_mtime_ns == before
    (tmp_path / "out" / "a.mkv").unlink()
    changed = [job("a.mkv"), job("b.mkv", voice=str(bad), settings=replace(QUICK, gain=1.5)), fresh[2]]
    last = HerePool(tmp_path / "out")
    run.run_batch(changed, str(tmp_path / "out"), lambda: last)
    assert [label for _, task, label in last.asked if task == "dub"] == ["a.mkv", "b.mkv"]  # one is gone, one is another job now


def test_a_video_without_a_face_fails_all_of_its_jobs_and_no_other(job, plain_clip, tmp_path, monkeypatch):
    blind = SteadyFace()
    blind.find = lambda images, smallest_px=12.0: [[] for _ in images]
    monkeypatch.setattr(parts, "load_tracker", lambda *a, **k: blind)
    jobs = [job("a.mkv", track=None, video=str(plain_clip)), job("b.mkv"), job("c.mkv", track=None, video=str(plain_clip))]
    summary = run.run_batch(jobs, str(tmp_path / "out"), lambda: HerePool(tmp_path / "out"))
    assert [row["state"] for row in summary["jobs"]] == ["failed", "done", "failed"]
    assert "No face in any" in summary["jobs"][2]["error"]


def test_a_fault_of_our_own_is_a_sentence_too_and_warnings_are_kept(job, tmp_path, monkeypatch, caplog):
    def broken(self, *a, **k):
        raise IndexError("list index out of range")

    real = LipSync.dub
    monkeypatch.setattr(LipSync, "dub", broken)
    worker = Worker(WorkerOptions(str(tmp_path), "cpu", None))
    (tmp_path / STATE).mkdir()
    outcome = worker.dub(job("a.mkv"), job("a.mkv").track)
    assert outcome["state"] == "failed" and "IndexError" in outcome["error"] and "please report it" in outcome["error"]

    def warning(self, *a, **k):
        loading.log.warning("the codec is missing")
        return real(self, *a, **k)

    monkeypatch.setattr(LipSync, "dub", warning)
    assert worker.dub(job("a.mkv"), job("a.mkv").track)["notes"] == ["the codec is missing"]
    assert "codec" not in caplog.text


def test_a_worker_that_is_asked_to_stop_drops_its_work_and_leaves_nothing(job, tmp_path):
    worker = Worker(WorkerOptions(str(tmp_path), "cpu", None))
    (tmp_path / STATE).mkdir()
    worker.stop()
    with pytest.raises(Stopped):
        worker.dub(job("a.mkv"), job("a.mkv").track)
    assert not list((tmp_path / STATE).iterdir()) and not (tmp_path / "a.mkv").exists()


def test_a_second_run_of_the_same_folder_is_refused(job, tmp_path):
    (tmp_path / STATE / "part-left").mkdir(parents=True)
    with alone_with(tmp_path, tmp_path / STATE / "lock"), pytest.raises(FlashLipsError, match="Another process is writing"):
        run.run_batch([job("a.mkv")], str(tmp_path), lambda: HerePool(tmp_path))
    run.run_batch([job("a.mkv")], str(tmp_path), lambda: HerePool(tmp_path))
    assert not (tmp_path / STATE / "part-left").exists()  # of a run that was killed


# ---- addresses -------------------------------------------------------------------------------------------------------------


def test_inputs_outputs_and_state_may_lie_in_an_object_store(job, talking_clip, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    store, root = fsspec.filesystem("memory"), f"memory://{tmp_path.name}"
    store.pipe_file(f"/{tmp_path.name}/in/clip.mp4", talking_clip.read_bytes())
    store.pipe_file(f"/{tmp_path.name}/in/jobs.csv", f"{HEAD}\nclip.mp4,clip.mp4,de/a.mkv\n".encode())
    (row,) = read_table(f"{root}/in/jobs.csv")
    jobs = [job("de/a.mkv", video=row.video, voice=row.voice), job("b.mkv")]
    check_jobs({"one": jobs[0], "two": jobs[1]}, f"{root}/out")
    assert run.run_batch(jobs, f"{root}/out", lambda: HerePool(f"{root}/out"))["done"] == 2
    copy = places.fetched(f"{root}/out/de/a.mkv", tmp_path)
    assert same(pictures(copy), pictures(places.fetched(f"{root}/out/b.mkv", tmp_path)))
    assert json.loads(places.read(f"{root}/out/summary.json"))["done"] == 2
    again = HerePool(f"{root}/out")
    assert run.run_batch(jobs, f"{root}/out", lambda: again)["done"] == 2 and not again.asked
    with pytest.raises(FlashLipsError, match="no file at memory://"):
        check_jobs({"one": job("a.mkv", video=f"{root}/in/other.mp4")}, f"{root}/out")
    with pytest.raises(FlashLipsError, match="cannot be used"):
        places.exists("nosuchstore://bucket/clip.mp4")


# ---- processes -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_job_is_done_again(job, tmp_path):
    jobs = [job(f"{n}.mkv", settings=replace(QUICK, sampler=SamplerSettings(seed=n))) for n in range(3)]
    out, killed = tmp_path / "out", []
    killer_of_one(out, killed)
    summary = run.run_batch(jobs, str(out), lambda: LocalPool(str(out), "cpu", 1))
    assert len(killed) == 1 and summary["done"] == 3 and processes_of(out) != set(killed)
    assert not list((out / STATE).glob(f"{PART}*"))
    run.run_batch(jobs, str(tmp_path / "here"), lambda: HerePool(tmp_path / "here"))
    for one in jobs:
        assert same(pictures(out / one.output), pictures(tmp_path / "here" / one.output))


@pytest.mark.slow
def test_a_stopped_batch_goes_on_where_it_was(job, tmp_path):
    jobs, out = [job(f"{n}.mkv") for n in range(3)], tmp_path / "out"

    def stop_after_one(done, total):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run_batch(jobs, str(out), lambda: LocalPool(str(out), "cpu", 1), stop_after_one)
    assert sorted(file.name for file in out.iterdir()) == [STATE, "0.mkv", "summary.html", "summary.json"]
    assert not list((out / STATE).glob("part-*")) and not multiprocessing.active_children()
    summary = json.loads((out / "summary.json").read_text())
    assert [row["state"] for row in summary["jobs"]] == ["done", "waiting", "waiting"]
    rest = HerePool(out)
    assert run.run_batch(jobs, str(out), lambda: rest)["done"] == 3
    assert [label for _, task, label in rest.asked if task == "dub"] == ["1.mkv", "2.mkv"]


@pytest.mark.slow
def test_the_command_dubs_a_table_with_two_workers(job, model_folder, talking_clip, tmp_path, capsys):
    track = job("a.mkv").track
    lines = [f"{talking_clip},{talking_clip},{n}.mkv,{n},{track}" for n in range(3)]
    (tmp_path / "jobs.csv").write_text(f"{HEAD},seed,track\n" + "\n".join(lines))
    options = ["--models", str(model_folder), "--device", "cpu", "--preset", "ultrafast", "--crf", "0"]
    command = ["batch", str(tmp_path / "jobs.csv"), "-o", str(tmp_path / "out"), "--workers", "2", *options]
    assert main([*command, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["done"] == 3 and summary["frames"] == 75 and summary["video_s"] == 3
    single = ["sync", str(talking_clip), str(talking_clip), "-o", str(tmp_path / "one.mkv"), "--seed", "1", "--track", track]
    assert main([*single, *options]) == 0
    assert same(pictures(tmp_path / "out" / "1.mkv"), pictures(tmp_path / "one.mkv"))
    (tmp_path / "bad.wav").write_text("no sound")
    (tmp_path / "jobs.csv").write_text(f"{HEAD},seed,track\n{talking_clip},bad.wav,bad.mkv,,{track}\n" + "\n".join(lines))
    assert main(command) == 2
    assert "1 of 4 jobs failed, bad.mkv first" in capsys.readouterr().err
