"""What a bulk run shall do: the rows of a table, or the videos of one folder with the voices of others."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from ..media import CONTAINERS
from ..steps import DubSettings
from ..types import FlashLipsError
from .places import below, exists, is_address, read, stamp

log = logging.getLogger(__name__)

COLUMNS = ("video", "voice", "output")
LIPS_FROM = ("driving", "poses")  # columns that may stand in for a voice
MEDIA = {*CONTAINERS, ".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".aac", ".avi", ".mpg", ".ts", ".m4v"}
TRACKING = ("which", "every", "stabilise", "threshold")  # the settings that decide how a face is followed


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    where: str  # for messages: "Line 4 of jobs.csv"
    video: str
    voice: str | None
    output: str
    options: Mapping[str, str] = field(default_factory=dict)  # name of an option of ``sync``, without dashes, -> its text


@dataclass(frozen=True)
class Job:
    """One dub. Files are paths or addresses; ``output`` lies below the batch's folder."""

    output: str
    video: str
    voice: str | None
    settings: DubSettings = DubSettings()
    models: Mapping[str, Any] = field(default_factory=dict)  # as ``LipSync.load`` takes them
    track: str | None = None
    driving: str | None = None
    poses: str | None = None

    @property
    def inputs(self) -> list[str]:
        """Every file that it reads, models apart."""
        return [place for place in (self.video, self.voice, self.track, self.driving, self.poses) if place]

    @cached_property
    def shared(self) -> str:
        """Equal for jobs whose track is the same: of one video, followed by one model in one way."""
        how = [getattr(self.settings, name) for name in TRACKING]
        return digest([self.video, stamp(self.video), self.track, *how, dict(self.models)])

    @cached_property
    def identity(self) -> str:
        """Changes with anything that the result depends on: settings, and size and time of every file."""
        files = [*self.inputs, self.settings.which, *self.models.values()]
        return digest([asdict(self), [stamp(str(place)) for place in files if is_address(str(place)) or exists(str(place))]])


def digest(value: Any) -> str:
    """A name for a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:24]


def read_table(table: str) -> list[Row]:
    """The rows of a CSV or JSON-lines file; files that it names are looked for beside it, then from the current folder.

    Raises:
        FlashLipsError: it cannot be read, lacks a column, or a row lacks a value.
    """
    name = table.replace("\\", "/").rsplit("/", 1)[-1]
    try:
        text = read(table).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FlashLipsError(f"{table} cannot be read ({error}); name a CSV or JSON-lines file in UTF-8.") from error
    is_json = Path(name).suffix.lower() in (".jsonl", ".ndjson", ".json")
    lines = _json_lines(text, name) if is_json else _csv_lines(text, name)
    rows = [_row(f"Line {line} of {name}", values, table) for line, values in lines]
    if not rows:
        raise FlashLipsError(f"{name} names no job; give it a line for each, with {', '.join(COLUMNS)}.")
    return rows


def pair_folders(videos: str, voices: Sequence[str]) -> list[Row]:
    """Each video of a folder with the voice of the same name in each language's folder; videos without one are left out, said."""
    films, rows = _media_in(videos), []
    for folder in voices:
        spoken = {Path(file).stem: file for file in _media_in(folder)}
        language = Path(folder).resolve().name
        silent = [film.name for film in films if film.stem not in spoken]
        if silent:
            log.warning("%d videos have no voice in %s and are left out: %s.", len(silent), folder, ", ".join(silent[:5]))
        for film in films:
            if film.stem in spoken:
                voice = str(spoken[film.stem])
                rows.append(Row(f"{film.name} in {language}", str(film), voice, f"{language}/{film.stem}.mp4"))
    if not rows:
        raise FlashLipsError(
            f"No voice in {' or '.join(voices)} has the name of a video in {videos}; a voice for a.mp4 is called a.wav."
        )
    return rows


def check_jobs(jobs: Mapping[str, Job], folder: str) -> None:
    """Refuse before the work what could not be done in the end.

    Args:
        jobs: by where each was named.
        folder: the batch's.
    """
    taken: dict[str, str] = {}
    for where, job in jobs.items():
        place, suffix = PurePosixPath(job.output), PurePosixPath(job.output).suffix.lower()
        if place.is_absolute() or ".." in place.parts or is_address(job.output) or place.parts[0].startswith("."):
            raise FlashLipsError(f"{where}: the output '{job.output}' does not lie below -o; name it from there.")
        if suffix not in CONTAINERS:
            raise FlashLipsError(f"{where}: cannot write '{job.output}', the suffix must be one of {', '.join(CONTAINERS)}.")
        key = str(place).casefold()  # one file on Windows and macOS
        if key in taken:
            raise FlashLipsError(f"{where} and {taken[key][0].lower()}{taken[key][1:]} have one output, {job.output}; name two.")
        taken[key] = where
    missing = [(where, place) for where, job in jobs.items() for place in job.inputs if not exists(place)]
    if missing:
        more = f" ({len(missing) - 1} more are missing too)" if len(missing) > 1 else ""
        raise FlashLipsError(f"{missing[0][0]}: no file at {missing[0][1]}{more}; correct the table, nothing was started.")
    written = {_same(below(folder, job.output)) for job in jobs.values()}
    for where, job in jobs.items():
        if any(_same(place) in written for place in job.inputs):
            raise FlashLipsError(f"{where}: it reads a file that is a job's output and would be destroyed; choose another -o.")


def beside(table: str, text: str) -> str:
    """A file as a table names it: beside the table where there is one, else as it stands."""
    if is_address(text) or Path(text).is_absolute():
        return text
    place = f"{table.rsplit('/', 1)[0]}/{text}" if is_address(table) else str(Path(table).parent / Path(text).expanduser())
    return place if is_address(table) or Path(place).exists() else text


def _csv_lines(text: str, name: str) -> Iterator[tuple[int, dict[str, str]]]:
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    columns = [_column(column) for column in reader.fieldnames or ()]
    if missing := _missing(columns):
        has, needed = ", ".join(columns) or "nothing", ", ".join(COLUMNS)
        raise FlashLipsError(f"{name} has no column {' and '.join(missing)}, it has {has}; its first line must name {needed}.")
    reader.fieldnames = columns
    for values in reader:
        if None in values:
            raise FlashLipsError(f"Line {reader.line_num} of {name} has more cells than columns; quote what holds a comma.")
        yield reader.line_num, {column: (value or "").strip() for column, value in values.items()}


def _json_lines(text: str, name: str) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise FlashLipsError(f"Line {number} of {name} is not JSON ({error}); write one object in each line.") from error
        if not isinstance(values, dict) or any(isinstance(value, (dict, list)) for value in values.values()):
            raise FlashLipsError(f'Line {number} of {name} is no object; write {{"video": ..., "voice": ..., "output": ...}}.')
        yield number, {_column(key): "" if value is None else _text(value) for key, value in values.items()}


def _row(where: str, values: dict[str, str], table: str) -> Row:
    given = {name: text for name, text in values.items() if text}
    if missing := _missing(given):
        raise FlashLipsError(f"{where} has no {' and '.join(missing)}; every job needs {', '.join(COLUMNS)}.")
    video, voice = (beside(table, given[name]) if name in given else None for name in ("video", "voice"))
    options = {name: text for name, text in given.items() if name not in COLUMNS}
    return Row(where, video, voice, given["output"].replace("\\", "/"), options)


def _missing(names: Collection[str]) -> list[str]:
    """Which of the columns that a job needs are not among these."""
    return [column for column in COLUMNS if column not in names and not (column == "voice" and {*LIPS_FROM} & {*names})]


def _column(name: str | None) -> str:
    return (name or "").strip().lower().replace("_", "-")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _media_in(folder: str) -> list[Path]:
    path = Path(folder)
    if not path.is_dir():
        raise FlashLipsError(f"There is no folder {folder}; name one with video or sound files.")
    return sorted(file for file in path.iterdir() if file.suffix.lower() in MEDIA and not file.name.startswith("."))


def _same(place: str) -> str:
    return place if is_address(place) else str(Path(place).resolve())
