"""``batch``: many dubs in one run."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable
from typing import Any, NoReturn

from ..types import FlashLipsError
from .dub import add_choices
from .options import check_device, positive, progress_bar, settings_from

MODELS = ("codec", "editor", "pose_model", "audio_encoder", "lip_encoder", "detector", "emotion_encoder", "crop_px")
YES, NO = ("true", "yes", "1"), ("false", "no", "0")
FILES = ("track", "poses", "driving", "face", "models", *(name.replace("_", "-") for name in MODELS))  # may lie beside the table


def add_batch(parser: argparse.ArgumentParser) -> None:
    """The options of ``batch``: its own, and those of ``sync``, which then hold for every job that does not say otherwise."""
    group = parser.add_argument_group("batch")
    group.add_argument(
        "jobs",
        metavar="JOBS",
        help="a CSV or JSON-lines file with video, voice, output and any option of 'sync', or with --voices a folder of videos",
    )
    group.add_argument("-o", "--out", required=True, metavar="DIR", help="folder for the dubs and their summary, or an address")
    group.add_argument(
        "--voices", nargs="+", metavar="DIR", help="a folder of voices for each language; a voice is called as its video is"
    )
    group.add_argument(
        "--workers", type=positive, metavar="N", help="processes (default: one for each GPU, else one for every two cores)"
    )
    add_choices(parser)


def run_batch(args: argparse.Namespace) -> dict[str, Any]:
    """Dub every video of a table or folder; stopped, the same command goes on where it was."""
    from ..batch.jobs import check_jobs, pair_folders, read_table
    from ..batch.run import run_batch as run

    rows = pair_folders(args.jobs, args.voices) if args.voices else read_table(args.jobs)
    job_of = job_maker(args)
    jobs = {row.where: job_of(row) for row in rows}
    check_jobs(jobs, args.out)
    check_device(args.device)
    _check_models([job.models for job in jobs.values()])
    with progress_bar("batch", args, unit=" jobs") as progress:
        summary = run(list(jobs.values()), args.out, lambda: _pool(args), progress)
    if summary["failed"]:
        first = next(row for row in summary["jobs"] if row["state"] == "failed")
        raise FlashLipsError(
            f"{summary['failed']} of {len(jobs)} jobs failed, {first['output']} first: {first['error']} The others are done. See "
            f"{summary['summary']}, mend what it says and run the same command again: it does these only."
        )
    return summary


def say_batch(result: dict[str, Any]) -> str:
    """The summary for people."""
    seconds = f"{result['video_s']:.1f} s of video in {result['run_s']:.1f} s"
    return f"{result['done']} dubs, {seconds}; see {result['summary']}."


def job_maker(args: argparse.Namespace) -> Callable[[Any], Any]:
    """Turns a row into a job: its columns over the command's own options."""
    from ..batch.jobs import Job, beside

    parser = _RowParser(add_help=False, allow_abbrev=False)
    add_choices(parser)
    actions = {name[2:]: action for action in parser._actions for name in action.option_strings if name.startswith("--")}
    del actions["device"]  # a worker's, not a job's

    def chosen(row: Any) -> argparse.Namespace:
        given, flags = [], {}
        for name, text in row.options.items():
            action = actions.get(name)
            if action is None:
                near = difflib.get_close_matches(name, actions, 1)
                hint = f"did you mean '{near[0]}'?" if near else "see 'sync --help' for those there are."
                raise FlashLipsError(f"{row.where}: there is no option '{name}'; {hint}")
            if action.nargs == 0:
                if text.lower() not in YES + NO:
                    raise FlashLipsError(f"{row.where}: '{name}' is {text}; write yes or no.")
                flags[action.dest] = action.const if text.lower() in YES else action.default
            else:
                given.append(f"--{name}={beside(args.jobs, text) if name in FILES and not args.voices else text}")
        try:
            return argparse.Namespace(**{**vars(parser.parse_args(given, argparse.Namespace(**vars(args)))), **flags})
        except FlashLipsError as error:
            raise FlashLipsError(f"{row.where}: {error}") from error

    def job_of(row: Any) -> Job:
        options = chosen(row)
        if options.driving and options.poses:
            raise FlashLipsError(f"{row.where} has both driving and poses; choose one source of lip motion.")
        if options.poses and options.gain is not None:
            raise FlashLipsError(f"{row.where}: poses of a file are used as they are; leave gain out.")
        try:
            settings = settings_from(options)
        except FlashLipsError as error:
            raise FlashLipsError(f"{row.where}: {error}") from error
        models = {name: value for name in MODELS if (value := getattr(options, name)) is not None}
        models |= {"folder": options.models} if options.models else {}
        files = {name: getattr(options, name) for name in ("track", "driving", "poses")}
        return Job(row.output, row.video, row.voice, settings, models, **files)

    return job_of


class _RowParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise FlashLipsError(f"{message[:1].upper()}{message[1:]}.")


def _check_models(chosen: list[dict[str, Any]]) -> None:
    """Load what was named once, before the work: a wrong checkpoint is one mistake, not one for each job."""
    from ..pipeline import LipSync

    for models in [models for place, models in enumerate(chosen) if models and models not in chosen[:place]]:
        given = dict(models)
        LipSync.load(given.pop("folder", None), **given, device="cpu").load_all()


def _pool(args: argparse.Namespace) -> Any:
    from ..batch.pool import LocalPool

    return LocalPool(args.out, args.device, args.workers)
