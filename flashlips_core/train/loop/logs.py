"""What a run leaves to look at, in its folder: ``losses.csv``, ``validation.csv``, ``sheets/*.png``, and TensorBoard's files."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from ...pixels import to_bytes
from ...types import FlashLipsError

log = logging.getLogger(__name__)


class RunLog:
    """Writes numbers and pictures of one run.

    Args:
        uses_tensorboard: also write TensorBoard's files, to ``run_dir``/tensorboard.
    """

    def __init__(self, run_dir: str | Path, uses_tensorboard: bool = False) -> None:
        self.folder = Path(run_dir)
        self._board = _board(self.folder / "tensorboard") if uses_tensorboard else None

    def numbers(self, name: str, step: int, values: dict[str, float]) -> None:
        """One row of ``<name>.csv``, and a line of the log."""
        add_row(self.folder / f"{name}.csv", {"step": step} | values)
        log.info("%s at %d: %s", name, step, " ".join(f"{key} {value:.4g}" for key, value in values.items()))
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(f"{name}/{key}", value, step)

    def sheet(self, step: int, picture: Tensor) -> None:
        """A picture (3, H, W) in [-1, 1] of what the network does now: ``sheets/<step>.png``."""
        from PIL import Image

        pixels = to_bytes(picture)
        path = self.folder / "sheets" / f"{step:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        if self._board is not None:
            self._board.add_image("sheet", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Finish TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def add_row(path: Path, row: dict[str, float]) -> None:
    """Append to a CSV table; where the row has new columns, the table is written anew with them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: list[str] = []
    if path.exists():
        with path.open(newline="") as file:
            columns = next(csv.reader(file), [])
    if columns and set(row) <= set(columns):
        with path.open("a", newline="") as file:
            csv.DictWriter(file, columns).writerow(row)
        return
    rows = read_rows(path) if columns else []
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *(key for key in row if key not in columns)])
        writer.writeheader()
        writer.writerows([*rows, row])
    part.replace(path)


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """The rows of a table, as text; a number that a row lacks is empty."""
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        if not error.name.startswith("tensorboard"):
            raise
        raise FlashLipsError(
            "TensorBoard is not installed; run pip install tensorboard, or train with tensorboard=False: "
            "losses.csv has the same numbers."
        ) from error
    return SummaryWriter(folder)
