"""What ``bench`` measured, in Markdown: ``docs/BENCHMARKS.md`` is written by it."""

from __future__ import annotations

from collections.abc import Mapping

from . import rivals, stages

INTRO = """# Benchmarks

Written by `{command}`;
do not edit by hand. Times of one run can be compared with each other only: the machine, and what else it was doing, stand below.
A dub is timed file to file, with reading, tracking, pasting and writing, without loading the models.
"""
BUSY = "**More was running than the machine has cores: a dub's times here are a multiple of what a free machine takes.**\n"
NO_EDIT = """No frame needed an edit: the clip's own mouths, laid over the frames, were near enough (`--start retrieved`, the
default). What encoding, editing and decoding cost stands below, beside other methods.
"""
LOAD = "busy with others, processes"  # of the conditions
RIVALS = """## Beside other methods

Their networks alone, rebuilt at their public sizes with random weights (speed does not depend on them), one frame at a time in
fp32 on the CPU; ours likewise, the whole window around the mouth encoded, edited and decoded. Shown is how many times as much of
the processor's time as ours they take. Face detection, files and blending are left out on all sides. What takes longer than two
seconds is timed once, everything else five times after one to warm up.
"""


def markdown(result: Mapping, command: str) -> str:
    """The page."""
    about = result["conditions"]
    parts = [INTRO.format(command=command), *(f"- {name}: {value}" for name, value in about.items()), ""]
    parts += [BUSY] if (about.get(LOAD) or 0) > about["cores"] else []
    dubs = result.get("end to end", {})
    for name, run in dubs.items():
        low, high = run["frames per second, lowest and highest"]
        peak = run["peak GB of the process"]
        parts += [f"## File to file: editor {name}, {run['crop px']} px\n"]
        parts += [
            f"{run['video']}, batch {run['batch']}, {run['timed runs']} timed runs after {run['warm-up runs']} to warm up: "
        ]
        parts += [f"**{run['frames per second, median']:.3g} frames per second** ({low:.3g} to {high:.3g})."]
        parts += [] if peak is None else [f"The process has held at most {peak:.2f} GB so far, with Python and all models."]
        parts += ["Stages work side by side in threads, so their times add up to more than the run.\n"]
        parts += [] if any(stage["name"] == stages.STAGES["edit"][0] for stage in run["stages"]) else [NO_EDIT]
        parts += [stages.table(run["stages"]), ""]
    if "rivals" in result:
        parts += [RIVALS, rivals.table(result["rivals"]), ""]
    if "long clip" in result:
        parts += ["## A long clip\n", *(f"- {name}: {value}" for name, value in result["long clip"].items()), ""]
    parts += ["## Networks\n", "| network | parameters | GFLOP |", "|---|---|---|"]
    parts += [f"| {row['network']} | {row['parameters'] / 1e6:.2f} M | {row['GFLOP']:.3g} |" for row in result["networks"]]
    return "\n".join(parts) + "\n"
