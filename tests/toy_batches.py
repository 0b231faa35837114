"""Batches of toy dubs: jobs, workers in this process, and one that kills workers."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from toy_dubs import make_track, planes_of

from flashlips_core.batch.jobs import Job
from flashlips_core.batch.work import PART, STATE, Worker, WorkerOptions
from flashlips_core.pipeline import DubSettings
from flashlips_core.sidecar import save_track

QUICK = DubSettings(preset="ultrafast", crf=0)
PATIENCE_S = 240


class HerePool:
    """Real workers, in this process."""

    lost = ()

    def __init__(self, folder, count=1):
        self.count, self.folder, self.asked = count, str(folder), []

    def start(self, place):
        worker, asked = Worker(WorkerOptions(self.folder, "cpu", None)), self.asked

        class Hand:
            def submit(self, task, label, *arguments):
                asked.append((place, task, label))
                future = Future()
                try:
                    future.set_result(getattr(worker, task)(*arguments))
                except BaseException as error:
                    future.set_exception(error)
                return future

            def close(self):
                pass

        return Hand()

    def stop(self):
        pass

    def close(self):
        pass


def job_maker(models: Path, clip: Path, folder: Path):
    """``job(output, **fields)``: a dub of one clip with its track at hand, since a process of its own finds no face in it."""
    save_track(make_track(), folder / "track.safetensors")
    usual = {"video": str(clip), "voice": str(clip), "settings": QUICK, "models": {"folder": str(models)}}
    usual |= {"track": str(folder / "track.safetensors")}
    return lambda output, **fields: Job(output, **usual | fields)


def pictures(path):
    return [planes[0].copy() for planes in planes_of(path)]


def same(one, two):
    return len(one) == len(two) and all(map(np.array_equal, one, two))


def killer_of_one(out: Path, killed: list[int]) -> threading.Thread:
    """Kills the first worker that has begun to write a dub, and notes its number."""

    def kill() -> None:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and not killed:
            for part in (out / STATE).glob(f"{PART}*"):
                killed.append(int(part.name.split("-")[1]))
                os.kill(killed[0], signal.SIGKILL)
                return
            time.sleep(0.005)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def processes_of(out: Path) -> set[int]:
    """Those that have done a job."""
    return {json.loads(file.read_text())["outcome"]["process"] for file in (out / STATE / "jobs").glob("*.json")}
