"""Which generated video belongs to which source and sound: a CSV file, or two folders."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from ...media import CONTAINERS
from ...types import FlashLipsError

NEEDED, OPTIONAL = ("generated", "source"), ("sound",)


@dataclass(frozen=True)
class Pair:
    """One output and what it was made of."""

    generated: Path
    source: Path
    sound: Path | None = None  # what the lips were driven by, a video or sound file; None: the source's own sound
    has_new_sound: bool = False  # whether another sound drove them though no file of it is given
    asked: Path | None = None  # (T,) openings that its lips were asked for; None: NAME.opening.npy where it lies beside it

    @property
    def name(self) -> str:
        return self.generated.stem

    @property
    def is_reconstruction(self) -> bool:
        """Whether the source itself shows what the lips should do."""
        return not self.has_new_sound and (self.sound is None or self.sound.resolve() == self.source.resolve())


@dataclass(frozen=True)
class Skipped:
    """What was not measured, and why."""

    name: str
    why: str


def from_csv(path: Path) -> tuple[list[Pair], list[Skipped]]:
    """The rows of a CSV file with columns ``generated``, ``source`` and, where another sound drove the lips, ``sound``.

    Paths are relative to the file's own folder. A row that names a missing file is skipped with the reason.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name.strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FlashLipsError(f"{path} cannot be read as a CSV file ({error}); check --pairs.") from error
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise FlashLipsError(
            f"{path.name} has no column {' or '.join(missing)} (its first line says: {', '.join(columns) or 'nothing'}); write "
            f"generated,source,sound there; sound may be left out."
        )
    pairs, skipped = [], []
    for number, row in enumerate(rows, start=2):
        given = {name: (row.get(name) or "").strip() for name in (*NEEDED, *OPTIONAL)}
        files = {name: path.parent / text for name, text in given.items() if text}
        absent = [name for name in NEEDED if name not in files]
        lost = [file for file in files.values() if not file.is_file()]
        if absent or lost:
            why = f"line {number} names no {absent[0]}" if absent else f"there is no file {lost[0]} (line {number})"
            skipped.append(Skipped(files["generated"].stem if "generated" in files else f"line {number}", f"{why}; mend it."))
        else:
            pairs.append(Pair(**files))
    return pairs, skipped


def from_folders(generated: Path, sources: Path) -> tuple[list[Pair], list[Skipped]]:
    """The videos of one folder beside those of another: a source's name is the output's, or what the output's begins with.

    ``clip.mp4``, ``clip_out.mp4`` and ``clip--voice.mp4`` all belong to ``clip.mp4``; the longest name that fits counts. Their
    lips are taken to speak the source's own sound; where they speak another, a CSV file says which.
    """
    outputs, originals = _videos(generated, "--generated"), _videos(sources, "--sources")
    pairs, skipped = [], []
    for output in outputs:
        fitting = [source for source in originals if _belongs(output.stem, source.stem)]
        if fitting:
            pairs.append(Pair(output, max(fitting, key=lambda source: len(source.stem))))
        else:
            why = f"no video in {sources} has a name that {output.name} begins with; rename it, or write a CSV file for --pairs."
            skipped.append(Skipped(output.stem, why))
    return pairs, skipped


def _videos(folder: Path, option: str) -> list[Path]:
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in CONTAINERS) if folder.is_dir() else []
    if not found:
        raise FlashLipsError(f"No videos in {folder}; give a folder with {', '.join(sorted(CONTAINERS))} files as {option}.")
    return found


def _belongs(output: str, source: str) -> bool:
    return output == source or output.startswith(source) and not output[len(source)].isalnum()
