"""The Transformer editor at toy size: caching, batching, reference order, latent sizes, initialisation, parameter count."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from einops import rearrange
from torch.nn import functional as F

from flashlips_core import checkpoint
from flashlips_core.models.editor_transformer import (
    COPIED_FROM,
    TRANSFORMER_300M,
    TRANSFORMER_MINI,
    TRANSFORMER_TINY,
    EditorTransformer,
    EditorTransformerConfig,
    TransformerContext,
    modulate,
    rope_2d,
)
from flashlips_core.models.editor_unet import COPIED_FROM as UNET_COPIED_FROM
from flashlips_core.models.editor_unet import UNET_250M, UNET_MINI, EditorUNet
from flashlips_core.models.layers import rotate
from flashlips_core.types import FlashLipsError


def trained_like(seed: int = 0, config: EditorTransformerConfig = TRANSFORMER_TINY) -> EditorTransformer:
    """A tiny editor in float64 whose zero-initialised layers are given weights, so that every path matters."""
    torch.manual_seed(seed)
    editor = EditorTransformer(config).double()
    for parameter in editor.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return editor


def sample(batch: int = 3, references: int = 2, size: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((batch, 4, size, size), (batch, references, 4, size, size), (batch, 12))
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def joint(editor: EditorTransformer, z_input: torch.Tensor, z_refs: torch.Tensor, poses: torch.Tensor) -> torch.Tensor:
    """The same network without any cache: one sequence of target and reference tokens under an attention mask."""
    rows, columns = (n // 2 for n in z_input.shape[-2:])
    n, num_refs = rows * columns, z_refs.shape[1]
    pose_map = poses[..., None, None].expand(-1, -1, *z_input.shape[-2:])
    target = editor.embed_target(torch.cat([z_input, pose_map], 1)).flatten(2).mT
    refs = rearrange(editor.embed_reference(editor.adapter(z_refs.flatten(0, 1))), "(b r) d y x -> b (r y x) d", r=num_refs)
    x = torch.cat([target, refs], 1)
    rope = tuple(part.repeat(1 + num_refs, 1) for part in rope_2d(rows, columns, editor.config, x.device))
    is_target = torch.arange(x.shape[1]) < n
    allowed = is_target[:, None] | ~is_target[None, :]  # a reference token sees no target token
    pose = editor.embed_pose(poses)
    for block in editor.blocks:
        parts = (block.modulation(pose)[:, None] * is_target[None, :, None]).chunk(6, -1)
        y = modulate(block.attention_norm(x), parts[0], parts[1])
        q, k, v = rearrange(block.qkv(y), "b n (three h d) -> three b h n d", three=3, h=block.num_heads)
        q, k = rotate(block.query_norm(q), rope), rotate(block.key_norm(k), rope)
        y = rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed), "b h n d -> b n (h d)")
        x = x + (1 + parts[2]) * block.attention_out(y)
        x = x + (1 + parts[5]) * block.mlp(modulate(block.mlp_norm(x), parts[3], parts[4]))
    shift, scale = editor.modulation(pose)[:, None].chunk(2, -1)
    out = editor.head(modulate(editor.norm(x[:, :n]), shift, scale))
    return z_input + F.pixel_shuffle(out.mT.unflatten(2, (rows, columns)), 2)


def test_the_300m_preset_has_about_300_million_parameters():
    with torch.device("meta"):
        editor = EditorTransformer(TRANSFORMER_300M)
    assert sum(p.numel() for p in editor.parameters()) == 312_621_008


def test_cached_references_equal_the_whole_sequence_recomputed():
    editor, (z_input, z_refs, poses) = trained_like(), sample()
    cached = editor(z_input, editor.prepare_references(z_refs), poses)
    torch.testing.assert_close(cached, joint(editor, z_input, z_refs, poses), rtol=1e-6, atol=1e-6)  # RoPE is float32


def test_one_context_serves_all_frames_of_a_clip():
    editor, (z_input, z_refs, poses) = trained_like(), sample()
    of_one = editor(z_input, editor.prepare_references(z_refs[:1]), poses)
    of_each = editor(z_input, editor.prepare_references(z_refs[:1].expand_as(z_refs)), poses)
    torch.testing.assert_close(of_one, of_each)


def test_batch_equals_singles():
    editor, (z_input, z_refs, poses) = trained_like(), sample()
    whole = editor(z_input, editor.prepare_references(z_refs), poses)
    rows = [slice(i, i + 1) for i in range(len(z_input))]
    singles = [editor(z_input[i], editor.prepare_references(z_refs[i]), poses[i]) for i in rows]
    torch.testing.assert_close(whole, torch.cat(singles))


def test_order_of_references_does_not_matter():
    editor, (z_input, z_refs, poses) = trained_like(), sample(references=4)
    first = editor(z_input, editor.prepare_references(z_refs), poses)
    second = editor(z_input, editor.prepare_references(z_refs[:, [2, 0, 3, 1]]), poses)
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


def test_context_does_not_depend_on_the_pose_and_the_result_does():
    editor, (z_input, z_refs, poses) = trained_like(), sample()
    context = editor.prepare_references(z_refs)
    assert isinstance(context, TransformerContext) and len(context.keys) == TRANSFORMER_TINY.depth
    assert (editor(z_input, context, poses) - editor(z_input, context, -poses)).abs().max() > 1e-3


@pytest.mark.parametrize("references", [1, 2, 6])
@pytest.mark.parametrize("height, width", [(32, 32), (64, 64), (16, 24)])
def test_any_size_and_number_of_references(height, width, references):
    editor = EditorTransformer(TRANSFORMER_TINY)
    with torch.no_grad():
        context = editor.prepare_references(torch.randn(1, references, 4, height, width))
        assert editor(torch.randn(2, 4, height, width), context, torch.randn(2, 12)).shape == (2, 4, height, width)


def test_an_untrained_editor_changes_nothing():
    editor, (z_input, z_refs, poses) = EditorTransformer(TRANSFORMER_TINY).double(), sample()
    assert torch.equal(editor(z_input, editor.prepare_references(z_refs), poses), z_input)


def test_gradients_reach_every_parameter_that_can_matter():
    editor, (z_input, z_refs, poses) = trained_like(), sample()
    read = poses[:, None].expand(-1, z_refs.shape[1], -1)
    editor(z_input, editor.prepare_references(z_refs, read), poses).square().sum().backward()
    assert [name for name, p in editor.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_positions_are_places_in_the_crop_at_either_size():
    small, large = (rope_2d(n, n, TRANSFORMER_TINY, torch.device("cpu")) for n in (16, 32))
    for a, b in zip(small, large, strict=True):  # a token at 256 px sits between its four at 512 px
        four = b.view(16, 2, 16, 2, -1).mean((1, 3)).flatten(0, 1)
        torch.testing.assert_close(a, four, rtol=0, atol=0.04)


def test_an_editor_that_copies_wants_more_references_than_the_papers_four():
    with torch.device("meta"):
        papers = [EditorTransformer(TRANSFORMER_300M), EditorUNet(UNET_250M)]
        copying = [EditorTransformer(TRANSFORMER_MINI), EditorUNet(UNET_MINI)]
    assert [editor.num_references for editor in papers + copying] == [4, 4, COPIED_FROM, UNET_COPIED_FROM]
    assert 4 < COPIED_FROM < UNET_COPIED_FROM  # of the Transformer every frame sees all of them, which costs


def test_a_copying_editor_takes_most_from_the_reference_whose_lips_fit():
    editor, (z_input, z_refs, poses) = trained_like(config=replace(TRANSFORMER_TINY, is_copying=True)), sample()
    torch.nn.init.zeros_(editor.pose_metric)
    fitting = poses[:1] + torch.tensor([[0.0], [5.0]]).double()  # the second reference is far from the first pose
    context = editor.prepare_references(z_refs[:1], fitting[None])
    copied, missing = editor._copied(context, poses[:1])
    torch.testing.assert_close(copied, z_refs[0, :1], atol=1e-6, rtol=0)
    assert missing.abs().max() < 1e-6
    blind, _ = editor._copied(editor.prepare_references(z_refs[:1]), poses[:1])
    torch.testing.assert_close(blind, z_refs[0].mean(0, keepdim=True))
    one = editor(z_input, editor.prepare_references(z_refs, fitting[None].expand(3, -1, -1)), poses)
    shared = editor(z_input, editor.prepare_references(z_refs[:1], fitting[None]), poses)
    torch.testing.assert_close(one[:1], shared[:1])
    one.sum().backward()
    assert all(p.grad is not None for p in editor.parameters())


def test_a_window_is_edited_as_its_places_in_the_crop_and_nothing_else_is():
    windowed = replace(TRANSFORMER_TINY, window=(0.25, 0.5, 0.75, 1.0))
    editor, (z_input, z_refs, poses) = trained_like(config=windowed), sample()
    edited = editor(z_input, editor.prepare_references(z_refs), poses)
    changed = (edited != z_input).any(1).any(0)
    assert changed[4:, 2:6].all() and changed.sum() == 16
    elsewhere = z_input.clone()
    elsewhere[..., :4, :] = 0
    assert torch.equal(editor(elsewhere, editor.prepare_references(z_refs), poses)[..., 4:, :], edited[..., 4:, :])
    whole = rope_2d(4, 4, windowed, z_input.device)
    for part, full in zip(editor._rope(z_input), whole, strict=True):
        assert torch.equal(part, full.unflatten(0, (4, 4))[2:, 1:3].flatten(0, 1))


def test_checkpoint_round_trip_keeps_config_and_result(tmp_path):
    editor, (z_input, z_refs, poses) = trained_like().float(), sample()
    checkpoint.save(editor, tmp_path / "editor.safetensors", "editor", {"version": "test"}, dtype=torch.float32)

    def build(fields):
        return EditorTransformer(checkpoint.config_from_dict(EditorTransformerConfig, fields))

    again = checkpoint.load(tmp_path / "editor.safetensors", "editor", {"EditorTransformer": build})
    assert again.config == editor.config
    z_input, z_refs, poses = z_input.float(), z_refs.float(), poses.float()
    expected = editor(z_input, editor.prepare_references(z_refs), poses)
    torch.testing.assert_close(again(z_input, again.prepare_references(z_refs), poses), expected)


def test_latents_that_do_not_divide_into_patches_are_refused():
    editor = EditorTransformer(TRANSFORMER_TINY)
    with pytest.raises(FlashLipsError, match="patches of 2"):
        editor.prepare_references(torch.zeros(1, 1, 4, 7, 8))
