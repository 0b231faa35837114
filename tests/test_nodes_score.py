"""Score Lip Sync: the card in the core, the node in the real ComfyUI."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flashlips_core.drawings.score import LINE, WIDTH, draw_score
from flashlips_core.evaluate.pairs.run import lines_of

DEMO = Path(__file__).resolve().parents[1] / "flashlips_core" / "demo"


def result() -> dict:
    rows = [("r", 0.5, "higher = better"), ("lost", 1234.0, ""), ("LPIPS", None, "put FILE in FOLDER")]
    measures = [{"name": name, "value": value, "note": note} for name, value, note in rows]
    return {"measures": measures, "conditions": {"ceiling": "codec", "torch": "2"}, "pairs": [{"notes": ["cut"]}]}


def test_a_card_lists_what_was_measured_and_says_what_was_not() -> None:
    lines, remarks = lines_of(result())
    assert lines == [("r", "0.5", "higher = better"), ("lost", "1234", "")]
    assert remarks == ["ceiling: codec", "cut", "not measured: LPIPS: put FILE in FOLDER"]


def test_a_card_grows_with_its_lines_and_shows_the_picture_below() -> None:
    lines, remarks = lines_of(result())
    plain, longer = draw_score("clip", lines, remarks), draw_score("clip", [*lines, lines[0]], remarks)
    assert plain.shape[1:] == (WIDTH, 3) and longer.shape[0] - plain.shape[0] == LINE
    shown = draw_score("clip", lines, remarks, np.full((10, 100, 3), 255, np.uint8))
    assert shown.shape[0] > plain.shape[0] and (shown[-60] == 255).all(-1).any()


# ---- in ComfyUI ------------------------------------------------------------------------------------------------------------


def graph(**inputs: object) -> dict:
    video = {"class_type": "FlashLipsLoadVideo", "inputs": {"path": str(DEMO / "face.mp4")}}
    node = {"class_type": "FlashLipsScore", "inputs": {"generated": ["video", 0], "source": ["video", 0], **inputs}}
    return {"video": video, "score": node}


@pytest.mark.comfy
def test_a_video_is_scored_beside_its_source_and_the_report_lies_in_the_output_folder(engine) -> None:
    run = engine.run(graph(new_sound=False, frames=6), "score")
    assert run.is_success, run.errors
    card, scores, report = run.outputs["score"]
    clip = json.loads(scores)["pairs"][0]
    assert clip["frames"] == 6 and clip["psnr_mouth"] > 60 and clip["lips_r"] == pytest.approx(1)
    assert Path(report).is_file() and engine.base / "output" / "FlashLips" in Path(report).parents
    assert card.shape[0] == 1 and card.shape[2:] == (WIDTH, 3) and 0 <= card.min() < card.max() <= 1
    (shown,) = run.ui["score"]["images"]
    assert (engine.base / "temp" / shown["subfolder"] / shown["filename"]).is_file()


@pytest.mark.comfy
def test_too_few_frames_are_refused_in_a_sentence(engine) -> None:
    assert "choose 0 for all, or 5 or more" in engine.run(graph(frames=3), "score").errors["score"]
