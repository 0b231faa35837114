"""The rows of ``eval --videos``: numbers of dubs, summed up over a folder of clips and held against what they must reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ... import measures as m
from ...measures import Measure

Numbers = dict[str, float | str | bool | None]  # of one dub, or of one clip
Row = tuple[str, str, Callable[[np.ndarray], float], m.Bounds, str]  # name, number, how it is summed up, bounds, note


def _lowest(values: np.ndarray) -> float:
    return float(values.min())


def _worst(values: np.ndarray) -> float:
    return float(np.abs(values).max())


def _mean_off(values: np.ndarray) -> float:
    return float(np.abs(values).mean())


GAP = "gap in the dub against asked opening, r"
ROWS: tuple[Row, ...] = (
    (f"{GAP}: lowest", "r", _lowest, (0.70, None), ""),
    (f"{GAP}: at the best lag", "r_best_lag", np.mean, m.UNBOUNDED, "within 4 frames"),
    ("size of the motion, read back over asked", "size", np.mean, (0.9, 1.1), "ratio of deviations, whether it follows or not"),
    ("size of the motion, by percentiles", "size_quantiles", np.mean, m.UNBOUNDED, "10th to 90th"),
    ("opening read back per opening asked, slope", "slope", np.mean, m.UNBOUNDED, "least squares: only what follows the poses"),
    ("detail in the mouth box, dub over source", "detail", np.mean, (0.8, 1.2), "median over frames"),
    ("detail in the mouth box, lowest clip", "detail", _lowest, (0.6, None), ""),
    ("detail in the mouth box, at the frame's own pixels", "detail_native", np.mean, m.UNBOUNDED, "large faces not made smaller"),
    ("detail in the mouth box, of the source's kind", "detail_true", np.mean, m.UNBOUNDED, "excess does not count; at most 1"),
    ("share of the finest detail, dub over source", "finest", np.mean, (None, 1.0), "above 1: stripes or grain"),
    ("share of the finest detail, highest clip", "finest", lambda v: float(v.max()), m.UNBOUNDED, ""),
    ("detail over the clip's own mouths of like pose", "detail_alike", np.mean, (0.8, None), "median over frames"),
    ("detail between lower lip and chin", "chin", np.mean, (0.9, 1.1), "median over frames"),
    ("detail between lower lip and chin, lowest clip", "chin", _lowest, (0.75, None), ""),
    ("second difference in time, lower face", "unrest", np.mean, (None, 1.1), "dub over source, aligned to the face"),
    ("colour of the lower face, worst channel, of 255", "colour", _mean_off, (None, 1.0), "mean over clips"),
    ("colour of the lower face, worst clip", "colour", _worst, (None, 2.0), ""),
    ("colour of the mouth beside like mouths, of 255", "colour_alike", _mean_off, m.UNBOUNDED, "mean over clips"),
)
ABOUT_CLIPS: tuple[Row, ...] = (
    ("predicted opening against the real one, own voice", "own_r", np.mean, (0.60, None), "best lag within 4 frames"),
    ("predicted opening, own voice: lowest clip", "own_r", _lowest, m.UNBOUNDED, ""),
    ("size of the predicted opening, own voice", "own_size", np.mean, m.UNBOUNDED, "ratio of deviations"),
    ("opening read by the lip encoder against the real one", "read_r", np.mean, (0.95, None), "source, lag 0"),
    ("size of the opening that the lip encoder reads", "read_size", np.mean, m.UNBOUNDED, "ratio of deviations"),
)


def rows_of(dubs: Sequence[Numbers], clips: Sequence[Numbers]) -> list[Measure]:
    """The table: ``dubs`` by clip and voice, ``clips`` once each."""
    still, moving = ([d for d in dubs if d["moving"] is is_moving] for is_moving in (False, True))
    found = [
        _row((f"{GAP}: still heads", "r", np.mean, (0.90, None), "mean over dubs, lag 0"), still),
        _row((f"{GAP}: moving heads", "r", np.mean, (0.85, None), "mean over dubs, lag 0"), moving),
        *(_row(row, dubs) for row in ROWS),
        *(_row(row, clips) for row in ABOUT_CLIPS if any(row[1] in clip for clip in clips)),
    ]
    total, lost = (int(sum(d[name] for d in dubs)) for name in ("frames", "without_face"))
    found.append(m.shown("frames whose face is lost", float(lost), total, "a face in the source, none in the dub"))
    return [*found, _row(("speed, file to file, FPS", "frames_per_second", np.mean, m.UNBOUNDED, "mean over dubs"), dubs)]


def _row(row: Row, numbers: Sequence[Numbers]) -> Measure:
    name, key, summed, bounds, note = row
    values = np.array([n[key] for n in numbers if n.get(key) is not None], float)
    if not len(values):
        return m.not_measured(name, "no clip tells")
    spread = f"median {np.median(values):.2f}, lowest {values.min():.2f}, highest {values.max():.2f}"
    return m.within(name, float(summed(values)), bounds, len(values), "; ".join(filter(None, (note, spread))))
