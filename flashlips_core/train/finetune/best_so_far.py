"""What fine-tunings share: a file that only a better one replaces, looks at what was held out, an end where nothing is gained.

The file is there from the start (the base's weights), so that a stop at any time leaves the best so far. Beside it lies the
run's folder; run again, it goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ... import checkpoint
from ...system.locks import alone_with
from ...types import FlashLipsError, Progress
from ..loop.attentive import attentive
from ..loop.trainer import MakeBatch, Step, TrainConfig, fit
from .lora import merged

log = logging.getLogger(__name__)

UNENDING = 1_000_000  # steps, where minutes are the limit
EMA = 0.99  # decay of the averaged weights, which are what is looked at and kept
SAVE_EVERY_S = 20.0  # what a stop may lose of the run, not of the result


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How long and how hard."""

    steps: int = 400
    minutes: float | None = None  # ends the run instead of ``steps``
    lr: float = 2e-5
    batch: int = 8
    seed: int = 0
    check_every: int = 25  # steps between looks at what is held out
    patience: int = 12  # looks without a gain after which it ends; an editor gained again after ten (s4)
    save_every_s: float = SAVE_EVERY_S


class Check(Protocol):
    """One look at what is held out; a dataclass."""

    step: int

    @property
    def score(self) -> float:
        """Higher is better."""

    def as_dict(self) -> dict[str, float]:
        """For JSON."""

    def sentence(self) -> str:
        """For people."""


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What came of it."""

    path: str
    ended: str  # "steps", "minutes", or "no gain"
    checks: list[Any]  # the first is the base's

    @property
    def before(self) -> Any:
        return self.checks[0]

    @property
    def best(self) -> Any:
        """What the file holds."""
        return best_of(self.checks)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        before, after = self.before.as_dict(), self.best.as_dict()
        checks = [check.as_dict() for check in self.checks]
        about = {"path": self.path, "ended": self.ended, "steps": self.checks[-1].step}
        return about | {"before": before, "after": after, "checks": checks}


def best_of(checks: list[Any]) -> Any:
    """The check with the highest score, the earliest of equal ones."""
    return max(checks, key=lambda check: (check.score, -check.step))


class _Ended(Exception):
    """The run is over before its last step."""


class BestSoFar:
    """One fine-tuning's file, its checks, and what the loop calls.

    Args:
        role: of the checkpoint.
        key: what must be the same for a run to go on: the material, the base and how it is trained, see :func:`key_of`.
        look: gives the check of a network at a step, and what ``watch`` shows of it.
        notes: of the checkpoint, given all checks and the one whose weights are kept.
        progress: counts steps, or seconds where minutes are the limit; what it raises stops the run and keeps the best so far.
        watch: gets all checks after each one, and what ``look`` showed.
    """

    def __init__(
        self,
        out: Path,
        role: str,
        settings: Tuning,
        key: str,
        check: type,
        look: Callable[[nn.Module, int], tuple[Any, Any]],
        notes: Callable[[list[Any], Any], dict[str, Any]],
        progress: Progress | None = None,
        watch: Callable[[list[Any], Any], None] | None = None,
    ) -> None:
        self.out, self.role, self.settings, self.key = out, role, settings, key
        self.check, self.look, self.notes, self.progress, self.watch = check, look, notes, progress, watch
        self.folder = out.with_suffix(".run")
        self.table = self.folder / "checks.json"
        self.checks: list[Any] = []
        self.step = self.first_step = 0  # the last one; and where this run began, or what it goes on from ended
        self.started = time.monotonic()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from training into this file; the disk's errors get a sentence, a stop says what is kept."""
        with alone_with(self.out, self.out.with_suffix(".lock")):
            try:
                yield
            except (OSError, SafetensorError) as error:
                raise FlashLipsError(
                    f"Cannot write {self.out} or its run ({error}); make room or choose another folder."
                ) from error
            except BaseException:
                if self.checks:
                    log.warning("Stopped; %s holds the best so far, of step %d.", self.out, best_of(self.checks).step)
                raise

    def open(self, base: nn.Module) -> None:
        """Find the run that wrote the file and its checks, or begin one with the base's weights."""
        if self.out.is_file():
            theirs = checkpoint.info(self.out).notes.get("run")
            if theirs != self.key or not self.table.is_file():
                raise FlashLipsError(
                    f"{self.out.name} is there already and comes from another clip, {self.role} or setting, "
                    "or its run was deleted; choose another name."
                )
            self.checks = [self.check(**row) for row in json.loads(self.table.read_text(encoding="utf-8"))]
            self.step = self.first_step = self.checks[-1].step
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._add(base, 0)

    def fit(
        self, network: nn.Module, batches: MakeBatch, step: Step, weights: dict[str, float] | None = None, **loop: object
    ) -> str:
        """Train until the limit or until nothing is gained any more; returns which. The file holds the best.

        Args:
            loop: further settings of ``TrainConfig``.
        """
        settings = self.settings
        config = TrainConfig(
            str(self.folder), UNENDING if settings.minutes else settings.steps, lr=settings.lr, schedule="constant", ema=EMA,
            seed=settings.seed, weights=weights or {}, log_every=settings.check_every, validate_every=settings.check_every,
            save_every_s=settings.save_every_s, **loop,
        )  # fmt: skip
        try:
            fit(network, batches, step, config, self._validate, self._report, is_attentive=True)
        except _Ended as why:
            return str(why)
        return "steps"

    def again(self) -> None:
        """No step more yet."""
        self._tell(self.step)

    # ---- what the loop calls -------------------------------------------------------------------------------------------

    def _validate(self, network: nn.Module, step: int) -> dict[str, float]:
        return self._add(merged(network), step).as_dict()

    def _add(self, network: nn.Module, step: int) -> Any:
        """Look at what is held out, keep the weights where they are the best so far, and say so."""
        known = next((check for check in self.checks if check.step == step), None)  # a stop came between this and its state
        if known is not None:
            return known
        with attentive(self.again):
            check, shown = self.look(network, step)
        self.checks.append(check)
        if best_of(self.checks) is check:
            notes = self.notes(self.checks, check) | {"steps": check.step, "run": self.key}
            notes |= {"fine_tuning": dataclasses.asdict(self.settings)}
            notes |= {"held_out": {"before": self.checks[0].as_dict(), "after": check.as_dict()}}
            checkpoint.save(network, self.out, self.role, notes)
        part = self.table.with_suffix(".part")
        part.write_text(json.dumps([check.as_dict() for check in self.checks]), encoding="utf-8")
        part.replace(self.table)
        log.info("step %d: %s%s", step, check.sentence(), self._left(step))
        if self.watch is not None:
            self.watch(self.checks, shown)
        return check

    def _left(self, step: int) -> str:
        """How long it still takes, once that can be told."""
        spent = time.monotonic() - self.started
        if self.settings.minutes:
            return f", {max(60 * self.settings.minutes - spent, 0):.0f} s left"
        done = step - self.first_step
        return f", {spent / done * (self.settings.steps - step):.0f} s left" if done > 0 else ""

    def _tell(self, step: int) -> None:
        """Seconds where minutes are the limit, else steps."""
        self.step = step
        if self.progress is not None:
            limit = round(60 * self.settings.minutes) if self.settings.minutes else self.settings.steps
            spent = round(time.monotonic() - self.started)
            self.progress(min(spent, limit) if self.settings.minutes else step, limit)

    def _report(self, step: int, steps: int) -> None:
        del steps  # the limit may be minutes
        self._tell(step)
        spent = time.monotonic() - self.started
        if self.settings.minutes and spent > 60 * self.settings.minutes:
            raise _Ended("minutes")
        since = [check for check in self.checks if check.step > best_of(self.checks).step]
        if len(since) >= self.settings.patience:
            raise _Ended("no gain")


def key_of(base: nn.Module, arrays: list[Tensor], settings: Tuning) -> str:
    """A digest of what a run learns from (``arrays``), starts from and does; how long it may take is no part of it."""
    digest = hashlib.sha256()
    for array in (*arrays, next(base.parameters()).detach()):
        digest.update(array.float().cpu().numpy().tobytes())
    length = ("steps", "minutes", "patience", "save_every_s")
    how = {name: value for name, value in dataclasses.asdict(settings).items() if name not in length}
    digest.update(json.dumps([how, checkpoint.config_to_dict(base)], sort_keys=True).encode())
    return digest.hexdigest()[:16]


def trainable(module: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """A copy in fp32 whose tensors gradients may pass through, also where the original was made in inference mode.

    Args:
        device: where the copy is made; None: where each of the original's tensors is, which stay there.
    """
    made: dict[int, Tensor] = {}
    with torch.no_grad():
        for weight in module.parameters():
            made[id(weight)] = nn.Parameter(weight.detach().to(device=device, dtype=torch.float32, copy=True))
        for buffer in module.buffers():
            dtype = torch.float32 if buffer.is_floating_point() else buffer.dtype
            made[id(buffer)] = buffer.to(device=device, dtype=dtype, copy=True)
    return copy.deepcopy(module, made).eval()
