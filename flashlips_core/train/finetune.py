"""Self-refinement of an editor for one person, from one clip of them; what is kept is the best on the clip's held-out end.

The checkpoint is there from the start (the base's weights) and only ever replaced by a better one, so that a stop at any time
leaves the best so far. Run again, it goes on where it stopped.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from .. import checkpoint
from ..checks import check_output
from ..codec import Codec
from ..loading import LoadedPart
from ..locks import alone_with
from ..types import FlashLipsError, Progress
from .attentive import attentive
from .editor import WEIGHTS, Judge, editor_batches, refinement_step
from .finetune_data import PersonFrames, check_trainable
from .finetune_report import Check, Examiner, write_sheet
from .loop import TrainConfig, fit
from .lora import add_lora, merged

log = logging.getLogger(__name__)

CONSENT = "Made from one person's face; use it only as that person agreed to."
UNENDING = 1_000_000  # steps, where minutes are the limit
SAVE_EVERY_S = 20.0  # what a stop may lose of the run, not of the result

Watch = Callable[[list[Check], Tensor], None]


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """How long and how hard; the defaults suit a CPU."""

    steps: int = 400
    minutes: float | None = None  # ends the run instead of ``steps``
    lr: float = 2e-5  # 1e-4 lost on held-out frames of an unseen person (GRID s4) within 25 steps
    lora: int = 0  # rank of the low-rank additions; 0 trains all weights
    batch: int = 8
    seed: int = 0
    check_every: int = 25  # steps between looks at the held-out frames
    patience: int = 6  # looks without a gain after which it ends
    save_every_s: float = SAVE_EVERY_S


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """What came of it."""

    path: str
    sheet: str  # mouths before and after
    ended: str  # "steps", "minutes", or "no gain"
    checks: list[Check]  # the first is the base's

    @property
    def before(self) -> Check:
        return self.checks[0]

    @property
    def best(self) -> Check:
        """What the file holds."""
        return best_of(self.checks)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        before, after = self.before.as_dict(), self.best.as_dict()
        return {
            "path": self.path, "sheet": self.sheet, "ended": self.ended, "steps": self.checks[-1].step,
            "before": before, "after": after, "checks": [check.as_dict() for check in self.checks],
        }  # fmt: skip


def best_of(checks: list[Check]) -> Check:
    """The check with the highest PSNR, the earliest of equal ones."""
    return max(checks, key=lambda check: (check.psnr_db, -check.step))


class _Ended(Exception):
    """The run is over before its last step."""


def fine_tune(
    editor: LoadedPart,
    person: PersonFrames,
    codec: Codec,
    lip_encoder: nn.Module,
    out: str | Path,
    settings: FineTuning = FineTuning(),
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> FineTuned:
    """Refine ``editor`` for a person and write it to ``out``, a .safetensors; the networks that are given stay as they are.

    Args:
        progress: counts steps, or seconds where minutes are the limit; what it raises stops the run and keeps the best so far.
        watch: gets all checks after each one, and the held-out mouths (B, 3, H, W) in [-1, 1] as the network now edits them.
    Raises:
        FlashLipsError: The editor is of stage 1, ``out`` cannot be written, is another's or is being written by another process,
            or the loss is no number any more.
    """
    out = Path(out)
    check_output(out, [], (".safetensors",))
    if editor.crop_px != person.crop_px:
        raise FlashLipsError(
            f"The editor sees crops of {editor.crop_px} px, these frames have {person.crop_px}; prepare them for this editor."
        )
    check_trainable(codec)
    if codec.name != person.codec:
        raise FlashLipsError(
            f"These frames are latents of the codec '{person.codec}', this one is '{codec.name}'; use one codec for both."
        )
    if editor.is_stage_1:
        raise FlashLipsError("This editor was trained on masked frames only (stage 1); choose a refined one.")
    with alone_with(out, out.with_suffix(".lock")), torch.inference_mode(False), torch.enable_grad():
        run = _Run(editor, person, codec, lip_encoder, out, settings, progress, watch)
        try:
            return run()
        except (OSError, SafetensorError) as error:
            raise FlashLipsError(f"Cannot write {out} or its run ({error}); make room or choose another folder.") from error
        except BaseException:
            if run.checks:
                log.warning("Stopped; %s holds the best so far, of step %d.", out, best_of(run.checks).step)
            raise


class _Run:
    """One fine-tuning: the loop's functions, and what they must remember."""

    def __init__(
        self,
        editor: LoadedPart,
        person: PersonFrames,
        codec: Codec,
        lip_encoder: nn.Module,
        out: Path,
        settings: FineTuning,
        progress: Progress | None,
        watch: Watch | None,
    ) -> None:
        self.base, self.person, self.out, self.settings = editor, person, out, settings
        self.progress, self.watch = progress, watch
        self.device = next(editor.network.parameters()).device
        # copies: gradients cannot pass through weights that were loaded in inference mode, and the caller's must not change
        self.drawer = _trainable(editor.network).requires_grad_(False)
        self.codec, reader = (_trainable(part).requires_grad_(False).to(self.device) for part in (codec, lip_encoder))
        self.judge = Judge(self.codec, reader)
        self.examiner = Examiner(person, self.codec, self.device)
        self.folder = out.with_suffix(".run")
        self.checks: list[Check] = []
        self.step = self.first_step = 0  # the last one; and where this run began, or what it goes on from ended
        self.started = time.monotonic()

    def __call__(self) -> FineTuned:
        network = copy.deepcopy(self.drawer).requires_grad_(True)
        if self.settings.lora:
            network = add_lora(network, self.settings.lora, self.settings.seed)
        self._open()
        config = TrainConfig(
            str(self.folder), UNENDING if self.settings.minutes else self.settings.steps, lr=self.settings.lr,
            schedule="constant", ema=0.99, seed=self.settings.seed, weights=WEIGHTS, log_every=self.settings.check_every,
            validate_every=self.settings.check_every, save_every_s=self.settings.save_every_s,
        )  # fmt: skip
        batches, ended = editor_batches(self.person.learnt, self.settings.batch), "steps"
        try:
            step = refinement_step(self.judge, self.drawer)
            fit(network, batches, step, config, self._validate, self._report, is_attentive=True)
        except _Ended as why:
            ended = str(why)
        sheet = self.out.with_suffix(".png")
        best = checkpoint.load(self.out, "editor", {type(self.drawer).__name__: self._rebuilt}, self.device)
        with attentive(self._again):
            write_sheet(self.examiner, self.drawer, best, sheet)
        return FineTuned(str(self.out), str(sheet), ended, self.checks)

    def _rebuilt(self, fields: dict[str, Any]) -> nn.Module:
        return type(self.drawer)(checkpoint.config_from_dict(type(self.drawer.config), fields))

    # ---- beginning and going on ----------------------------------------------------------------------------------------

    def _key(self) -> str:
        """What must be the same for a run to go on: the material, the base and how it is trained."""
        digest = hashlib.sha256()
        learnt = self.person.learnt
        first_weights = next(self.drawer.parameters()).detach()
        for array in (learnt.latents[:: max(len(learnt.latents) // 16, 1)], learnt.poses, first_weights):
            digest.update(array.float().cpu().numpy().tobytes())
        how = {name: getattr(self.settings, name) for name in ("lr", "lora", "batch", "seed", "check_every")}
        digest.update(json.dumps([how, checkpoint.config_to_dict(self.drawer)], sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def _open(self) -> None:
        """Find the run that wrote ``out`` and its checks, or begin one."""
        key, table = self._key(), self.folder / "checks.json"
        if self.out.is_file():
            theirs = checkpoint.info(self.out).notes.get("run")
            if theirs != key or not table.is_file():
                raise FlashLipsError(
                    f"{self.out.name} is there already and comes from another clip, editor or setting, "
                    "or its run was deleted; choose another name."
                )
            self.checks = [Check(**row) for row in json.loads(table.read_text(encoding="utf-8"))]
            self.step = self.first_step = self.checks[-1].step
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._add(self.drawer, 0)

    # ---- what the loop calls -------------------------------------------------------------------------------------------

    def _validate(self, network: nn.Module, step: int) -> dict[str, float]:
        check = self._add(merged(network), step)
        return check.as_dict()

    def _add(self, network: nn.Module, step: int) -> Check:
        """Look at the held-out frames, keep the weights where they are the best so far, and say so."""
        known = next((check for check in self.checks if check.step == step), None)  # a stop came between this and its state
        if known is not None:
            return known
        with attentive(self._again):
            edits = self.examiner.edits(network)
        check = self.examiner.check(edits, step)
        self.checks.append(check)
        if best_of(self.checks) is check:
            checkpoint.save(network, self.out, "editor", self._notes(check))
        table = self.folder / "checks.json"
        part = table.with_suffix(".part")
        part.write_text(json.dumps([check.as_dict() for check in self.checks]), encoding="utf-8")
        part.replace(table)
        log.info("step %d: lips %.2f dB, sharpness %.2f%s", step, check.psnr_db, check.sharpness, self._left(step))
        if self.watch is not None:
            self.watch(self.checks, edits)
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

    def _again(self) -> None:
        """No step more yet."""
        self._tell(self.step)

    def _report(self, step: int, steps: int) -> None:
        del steps  # the limit may be minutes
        self._tell(step)
        spent = time.monotonic() - self.started
        if self.settings.minutes and spent > 60 * self.settings.minutes:
            raise _Ended("minutes")
        since = [check for check in self.checks if check.step > best_of(self.checks).step]
        if len(since) >= self.settings.patience:
            raise _Ended("no gain")

    def _notes(self, check: Check) -> dict[str, Any]:
        before = self.checks[0]
        return self.base.notes | {
            "base": self.base.name,
            "codec": self.codec.name if self.codec.name in checkpoint.BUNDLED else self.base.codec,
            "crop_px": self.person.crop_px,
            "trained_on": {
                "file": self.person.name,
                "seconds": round(self.person.seconds, 2),
                "frames": len(self.person.learnt.poses),
            },
            "steps": check.step,
            "fine_tuning": dataclasses.asdict(self.settings),
            "held_out": {"before": before.as_dict(), "after": check.as_dict()},
            "consent": CONSENT,
            "run": self._key(),
        }


def _trainable(module: nn.Module) -> nn.Module:
    """A copy in fp32 whose tensors gradients may pass through, also where the original was made in inference mode."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for owner in module.modules():
            for name, value in list(owner._parameters.items()):
                if value is not None:
                    owner._parameters[name] = nn.Parameter(value.detach().float().clone())
            for name, value in list(owner._buffers.items()):
                if value is not None:
                    owner._buffers[name] = value.float().clone() if value.is_floating_point() else value.clone()
    return module.eval()
