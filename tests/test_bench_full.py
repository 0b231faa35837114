"""The speed of editors of the paper's size, on toy networks."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import TINY_EDITOR, tiny_codec

from flashlips_core.bench import editors
from flashlips_core.bench.editors import Plan, Speed, full_speed, plan_for, table
from flashlips_core.cli import main
from flashlips_core.codec import KLCodec, TinyCodec
from flashlips_core.models.editor_transformer import TRANSFORMER_TINY, EditorTransformer
from flashlips_core.models.editor_unet import EditorUNet

CPU = torch.device("cpu")
EDITORS = {"U-Net": lambda: EditorUNet(TINY_EDITOR), "Transformer": lambda: EditorTransformer(TRANSFORMER_TINY)}


def small_codecs():
    """The real classes of codecs: SDXL's and TAESDXL's at toy widths, and one of ours."""
    diffusers = pytest.importorskip("diffusers")
    ends = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4, "norm_num_groups": 4}
    tiny = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    return {
        "SDXL": lambda: KLCodec(diffusers.AutoencoderKL(block_out_channels=(8,) * 4, **ends)),
        "TAESDXL": lambda: TinyCodec(diffusers.AutoencoderTiny(**tiny)),
        "ours": tiny_codec,
    }


def test_every_editor_is_timed_with_every_codec():
    plan, told = Plan(EDITORS, small_codecs(), (64,), (2, 1), rounds=2, warm_up=1), []
    result = full_speed(CPU, plan, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (12, 12) and len(result["speeds"]) == 12
    for speed in result["speeds"]:
        assert speed["frames_per_second"] > 0 and speed["device_frames_per_second"] > 0 and not speed["note"]
        assert set(speed["ms_per_frame"]) == {"encode", "edit", "alpha", "decode"} and min(speed["ms_per_frame"].values()) > 0
    assert result["conditions"]["dtype"] == "float32" and "random" in result["conditions"]["weights"]
    assert result["table"].count("| U-Net | SDXL | 64 | ") == 2 and "109.41" in result["table"]
    json.dumps(result)


def test_memory_that_runs_out_is_a_row_and_the_others_are_measured():
    class Greedy(EditorUNet):
        def forward(self, z_input, context, poses):
            if len(z_input) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(z_input, context, poses)

    plan = Plan({"greedy": lambda: Greedy(TINY_EDITOR)}, {"ours": tiny_codec}, (64,), (2, 1), rounds=1, warm_up=0)
    many, one = full_speed(CPU, plan)["speeds"]
    assert many["note"] == "out of memory" and many["frames_per_second"] is None
    assert one["note"] == "" and one["frames_per_second"] > 0
    assert "| greedy | ours | 64 | 2 | out of memory |" in table({}, [Speed(**many)])


def test_what_there_is_no_time_for_is_a_row_that_says_so():
    result = full_speed(CPU, Plan(EDITORS, {"ours": tiny_codec}, (64,), (2, 1), rounds=1, warm_up=0), within_s=0)
    assert [speed["note"] for speed in result["speeds"]] == ["not measured: out of time"] * 4


def test_other_errors_are_not_hidden():
    class Broken(EditorUNet):
        def forward(self, z_input, context, poses):
            raise RuntimeError("no kernel image")

    plan = Plan({"broken": lambda: Broken(TINY_EDITOR)}, {"ours": tiny_codec}, (64,), (1,), rounds=1)
    with pytest.raises(RuntimeError, match="no kernel"):
        full_speed(CPU, plan)


def test_the_networks_are_the_papers():
    pytest.importorskip("diffusers")
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in build().parameters()) / 1e6 for name, build in editors.EDITORS.items()}
        vaes = [sum(p.numel() for p in build().parameters()) / 1e6 for build in (editors.sdxl_vae, editors.tiny_vae)]
    assert sizes == {"U-Net, 250 M": pytest.approx(245, abs=1), "Transformer, 300 M": pytest.approx(313, abs=1)}
    assert vaes == [pytest.approx(83.65, abs=0.01), pytest.approx(2.45, abs=0.05)]


def test_a_cpu_takes_one_round_frame_by_frame():
    assert (plan_for(CPU).batches, plan_for(CPU).rounds) == ((1,), 1)
    assert plan_for(torch.device("cuda")).rounds >= 20


def test_the_command_prints_the_table(monkeypatch, capsys):
    plan = Plan({"U-Net": EDITORS["U-Net"]}, {"ours": tiny_codec}, (64,), (1,), rounds=1, warm_up=0)
    monkeypatch.setattr(editors, "plan_for", lambda device: plan)
    monkeypatch.setattr(editors, "device_of", lambda name: CPU)
    assert main(["bench", "--full", "--quiet"]) == 0
    assert "| U-Net | ours | 64 | 1 | " in capsys.readouterr().out
    assert main(["bench", "--full", "--quiet", "--within", "0"]) == 0
    assert "| U-Net | ours | 64 | 1 | not measured: out of time |" in capsys.readouterr().out
    assert main(["bench", "--quiet", "--within", "9"]) == 2
    assert "--within belongs to --full" in capsys.readouterr().err
