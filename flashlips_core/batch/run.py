"""A batch from start to end: what is done already is kept, the rest is handed out, and every job's outcome is written at once."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..system.locks import alone_with
from ..types import FlashLipsError, Progress
from . import places
from .jobs import Job, digest
from .pool import Hand, Pool
from .summary import write_summary
from .work import PART, STATE, Outcome

log = logging.getLogger(__name__)

MOST_TRIES = 3  # of one job whose worker dies: often enough to outlive a machine, too few to hang on what kills every worker
STOP_S = 30  # what workers get to drop their work and remove unfinished files

Track = tuple[Job, ...]  # the task of following the face that these share; a Job alone is the task of dubbing it


def run_batch(
    jobs: Sequence[Job], folder: str, open_pool: Callable[[], Pool], progress: Progress | None = None
) -> dict[str, Any]:
    """Do the jobs that are not done yet and write the summary.

    Args:
        jobs: checked by ``check_jobs``.
        folder: for their outputs and the summary: a path or an address.
        open_pool: makes the workers' pool; called only where there is work.
        progress: counts jobs, those done earlier too.
    Returns:
        What ``summary.json`` holds.
    Raises:
        FlashLipsError: another run is at this folder, or it cannot be written.
    """
    started = time.perf_counter()
    with _alone(folder):
        outcomes = {job.output: outcome for job in jobs if (outcome := _kept(folder, job)) is not None}
        todo = [job for job in jobs if job.output not in outcomes]
        log.info("%d jobs, %d of them done already.", len(jobs), len(outcomes))

        def finished(job: Job, outcome: Outcome) -> None:
            outcomes[job.output] = outcome
            record = {"identity": job.identity, "outcome": outcome}
            places.write(_record(folder, job), json.dumps(record, sort_keys=True).encode())
            log.info("%s: %s", job.output, outcome.get("error", "done"))
            if progress is not None:
                progress(len(outcomes), len(jobs))

        if progress is not None:
            progress(len(outcomes), len(jobs))
        try:
            if todo:
                pool = open_pool()
                try:
                    _Handing(todo, jobs, pool, finished).run()
                finally:
                    pool.close()
        finally:  # of a stopped batch too
            summary = write_summary(folder, jobs, outcomes, time.perf_counter() - started)
    return summary


class _Handing:
    """Hands tasks to workers: each stays with the jobs of one video as long as there are any, then helps with another's."""

    def __init__(self, todo: Sequence[Job], jobs: Sequence[Job], pool: Pool, finished: Callable[[Job, Outcome], None]) -> None:
        self.pool, self.finished = pool, finished
        self.waiting: dict[str, deque[Job]] = {}
        for job in todo:
            self.waiting.setdefault(job.shared, deque()).append(job)
        # with those that are done already: a track must not depend on where the batch was stopped
        self.sharing = {key: tuple(job for job in jobs if job.shared == key) for key in self.waiting}
        self.tracks: dict[str, str | None] = {}  # None: being made
        self.hands: dict[int, Hand] = {}
        self.last: dict[int, str] = {}  # what each worker was at
        self.at: dict[Future, tuple[int, Job | Track]] = {}
        self.tries: Counter[Any] = Counter()

    def run(self) -> None:
        """Until no job is left. Stopped by an exception, the workers drop what they are doing."""
        try:
            self._fill(range(min(self.pool.count, sum(map(len, self.waiting.values())))))
            while self.at:
                done, _ = wait(self.at, return_when=FIRST_COMPLETED)
                for future in done:
                    self._settle(future)
        except BaseException:
            self.pool.stop()
            wait(self.at, STOP_S)
            raise
        finally:
            for place in list(self.hands):
                self.hands.pop(place).close()

    def _fill(self, free: Sequence[int]) -> None:
        """Give each of these workers something to do, where there is something."""
        for place in free:
            task = self._next(place)
            if task is not None:
                self._give(place, task)
            elif place in self.hands and not any(self.waiting.values()):
                self.hands.pop(place).close()  # on a full cluster, one that replaces a dead one may wait for this room

    def _next(self, place: int) -> Job | Track | None:
        known = [key for key in self.waiting if self.waiting[key] and self.tracks.get(key)]
        mine = self.last.get(place)
        if mine in known:
            return self.waiting[mine].popleft()
        new = next((key for key in self.waiting if key not in self.tracks), None)
        if new is not None:
            self.tracks[new] = None
            self.last[place] = new
            return self.sharing[new]
        if not known:
            return None
        self.last[place] = max(known, key=lambda key: len(self.waiting[key]))
        return self.waiting[self.last[place]].popleft()

    def _give(self, place: int, task: Job | Track) -> None:
        if place not in self.hands:
            self.hands[place] = self.pool.start(place)
        if isinstance(task, Job):
            given = ("dub", task.output, task, self.tracks[task.shared])
        else:
            given = ("track", f"track of {task[0].video}", task)
        self.at[self.hands[place].submit(*given)] = place, task

    def _settle(self, future: Future) -> None:
        place, task = self.at.pop(future)
        try:
            outcome = future.result()
        except self.pool.lost as error:
            outcome = self._after_death(place, task, error)
            if outcome is None:
                return
        if isinstance(task, Job):
            self.finished(task, outcome)
        elif "track" in outcome:
            self.tracks[task[0].shared] = outcome["track"]
        else:
            failed = self.waiting.pop(task[0].shared)
            for job in failed:
                self.finished(job, {"state": "failed", **outcome})
        idle = [other for other in range(self.pool.count) if other not in {busy for busy, _ in self.at.values()}]
        self._fill([place, *(other for other in idle if other != place)])

    def _after_death(self, place: int, task: Job | Track, error: Exception) -> Outcome | None:
        """Replace a worker and let the new one try again; what kills each of them is given up, with a sentence."""
        name = task.output if isinstance(task, Job) else task[0].video
        self.hands.pop(place).close()
        self.tries[name] += 1
        if self.tries[name] < MOST_TRIES:
            log.warning("A worker died at %s; another one tries again.", name)
            self._give(place, task)
            return None
        reason = " ".join(str(error).split())[:300]
        sentence = f"Its worker died {MOST_TRIES} times, as one does whose memory runs out ({reason}); try it alone with sync."
        return {"state": "failed", "error": sentence}


def _kept(folder: str, job: Job) -> Outcome | None:
    """The outcome of an earlier run, where its output is still there and nothing has changed that it depends on."""
    try:
        record = json.loads(places.read(_record(folder, job)))
    except (FlashLipsError, OSError, ValueError):
        return None
    is_done = record["outcome"]["state"] == "done" and record["identity"] == job.identity
    return record["outcome"] if is_done and places.exists(places.below(folder, job.output)) else None


def _record(folder: str, job: Job) -> str:
    return places.below(folder, f"{STATE}/jobs/{digest(job.output)}.json")


@contextmanager
def _alone(folder: str) -> Iterator[None]:
    """Hold the folder against other runs, and remove what killed workers leave; a store has no such lock."""
    if places.is_address(folder):
        yield
        return
    home = Path(folder, STATE)
    with alone_with(folder, home / "lock"):
        _tidy(home)
        try:
            yield
        finally:
            _tidy(home)


def _tidy(home: Path) -> None:
    for left in home.glob(f"{PART}*"):
        shutil.rmtree(left, ignore_errors=True)
