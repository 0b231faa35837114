"""What ``eval --pairs`` measured, as a page: the table, plots, the worst and the median clips."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..page import Page, note, number
from .rows import badness

NUM_WORST, NUM_MEDIAN = 4, 2
COLUMNS = (
    "lips_r", "lips_best_r", "lips_lag", "asked_r", "lse_c", "lse_d", "psnr_mouth", "psnr_outside", "ssim_mouth", "ssim_outside",
    "lpips_mouth", "lpips_outside", "identity", "sharpness", "finest", "flicker", "jitter", "colour",
)  # fmt: skip
NO_PLOTS = "No plots: Matplotlib is not installed; run: pip install matplotlib"
INK, BACK = "#dddddd", "#181818"


def write_page(path: Path, result: Mapping, sheets: Path) -> Path:
    """Write the page from what ``result.json`` holds."""
    ranked = sorted(result["pairs"], key=badness, reverse=True)
    columns = [name for name in COLUMNS if any(pair.get(name) is not None for pair in ranked)]
    page = Page("Lip sync, measured")
    page.text(result["command"], "code")
    for name, value in result["conditions"].items():
        page.text(f"{name}: {value}")
    page.measures(result["measures"])
    _plots(page, result["pairs"])
    worst = ranked[:NUM_WORST]
    middle = len(ranked) // 2
    shown = {"Worst": worst, "Median": [pair for pair in ranked[middle : middle + NUM_MEDIAN] if pair not in worst]}
    for label, pairs in shown.items():
        for pair in pairs:
            _one(page, label, pair, columns, sheets)
    page.heading("All, worst first")
    rows = [
        [html.escape(p["name"]), number(badness(p)), *(number(p.get(c)) for c in columns), note("; ".join(p["notes"]))]
        for p in ranked
    ]
    page.table(["clip", "faults", *columns, "notes"], rows)
    page.text("Faults: the mean of what each number lacks, 0 to 1 each; clips are sorted by it.")
    for skipped in result["skipped"]:
        page.text(f"Not measured: {skipped['name']}: {skipped['why']}")
    return page.save(path)


def _one(page: Page, label: str, pair: Mapping, columns: Sequence[str], sheets: Path) -> None:
    page.heading(f"{label}: {pair['name']}")
    page.text(", ".join(f"{name} {number(pair.get(name))}" for name in columns if pair.get(name) is not None))
    if pair["sheet"] is not None and (sheets / pair["sheet"]).is_file():
        page.picture(sheets / pair["sheet"])
    plot = curves_plot(pair)
    if plot is not None:
        page.picture(plot, "png")


# ---- plots -----------------------------------------------------------------------------------------------------------------


def _plots(page: Page, pairs: Sequence[Mapping]) -> None:
    """Each clip a dot: where the clips lie, with floor and ceiling where there are such."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        page.text(NO_PLOTS)
        return
    names = [name for name in COLUMNS if any(pair.get(name) is not None for pair in pairs)]
    if not names:
        return
    figure = Figure(figsize=(12, 0.42 * len(names) + 0.6), layout="constrained", facecolor=BACK)
    axes = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for axis, name in zip(axes, names, strict=True):
        values = np.array([pair[name] for pair in pairs if pair.get(name) is not None], float)
        axis.plot(values, np.zeros(len(values)), "o", color="#5caaff", alpha=0.6, markersize=5)
        axis.plot(values.mean(), 0, "|", color=INK, markersize=16)
        for suffix, colour in (("_floor", "#ff7896"), ("_ceiling", "#6eebbe")):
            marks = [pair[name + suffix] for pair in pairs if pair.get(name + suffix) is not None]
            if marks:
                axis.plot(np.mean(marks), 0, "d", color=colour, markersize=7)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", color=INK, fontsize=9)
        _dark(axis)
        axis.set_yticks([])
    page.text(
        "Each dot is a clip, the bar their mean; diamonds: red = the floor (another frame's mouth), green = the codec's ceiling."
    )
    page.picture(_png(figure), "png")


def curves_plot(pair: Mapping) -> bytes | None:
    """The lips' gap over seconds, beside the one wanted where it is known; None where nothing can be drawn."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(12, 1.8), layout="constrained", facecolor=BACK)
    axis = figure.subplots()
    for name, colour in (("wanted", "#ffbe5c"), ("generated", "#5caaff")):
        if name in pair["curves"]:
            curve = np.array(pair["curves"][name], float)
            axis.plot(np.arange(len(curve)) / pair["fps"], curve, color=colour, linewidth=1.2, label=f"lip gap {name}")
    axis.set_xlabel("seconds", color=INK)
    axis.legend(loc="upper right", facecolor=BACK, labelcolor=INK)
    _dark(axis)
    return _png(figure)


def _dark(axis: object) -> None:
    axis.set_facecolor(BACK)
    axis.tick_params(colors=INK, labelsize=8)
    for spine in axis.spines.values():
        spine.set_color("#555555")


def _png(figure: object) -> bytes:
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=90)
    return memory.getvalue()
