"""Compare Video: what it hands to the browser, which files it can serve and play, what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashlips_core.media import probe

pytestmark = pytest.mark.comfy


def node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def compared(engine, before: Path, after: Path, **wires: object):
    """What the node shows, and the run."""
    run = engine.run({
        "before": node("FlashLipsLoadVideo", path=str(before)), "after": node("FlashLipsLoadVideo", path=str(after)),
        "compare": node("FlashLipsCompareVideo", before=["before", 0], after=["after", 0], **wires),
    })  # fmt: skip
    assert run.is_success, run.errors
    [shown] = run.ui["compare"]["flashlips_compare"]
    return shown, run


def served(engine, item: dict) -> Path:
    return engine.base / item["type"] / item["subfolder"] / item["filename"]


def test_files_are_served_as_they_are_where_browsers_play_them(engine, clip) -> None:
    inside = clip(name="inside.mp4")
    shown, run = compared(engine, inside, inside)
    assert (shown["fps"], shown["frames"], shown["mouths"]) == (25.0, 25, [])
    made = served(engine, shown["before"])
    assert made.read_bytes() == inside.read_bytes() and shown["before"]["type"] == "temp"  # it lay outside ComfyUI's folders
    assert run.said["compare"] == "25 frames, 1.0 s"
    assert not run.previewed


def test_what_browsers_do_not_play_is_encoded_for_them_and_lengths_may_differ(engine, clip, plain_clip) -> None:
    other = clip(name="other.mkv", pts=tuple(range(0, 36_000, 3600)))
    shown, run = compared(engine, plain_clip, other)
    assert shown["frames"] == 10
    assert "'before' has 25 frames, 'after' 10; the first 10 are compared." in run.said["compare"]
    made = served(engine, shown["after"])
    assert made.suffix == ".mp4" and probe(made).num_frames == 10
