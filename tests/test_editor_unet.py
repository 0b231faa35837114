import dataclasses

import pytest
import torch

from flashlips_core import checkpoint
from flashlips_core.models.copying import compare_poses
from flashlips_core.models.editor_unet import UNET_250M, UNET_MINI, EditorUNet, EditorUNetConfig
from flashlips_core.types import FlashLipsError

TINY = EditorUNetConfig(
    channels=(16, 32),
    encoder_blocks=(1, 1),
    decoder_blocks=(1, 1),
    reference_channels=16,
    reference_blocks=1,
    condition_dim=16,
    head_dim=16,
)


def random_editor(config=TINY):
    torch.manual_seed(0)
    network = EditorUNet(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.requires_grad_(False)


@pytest.fixture
def editor():
    return random_editor()


def inputs(batch=3, references=2, cells=16):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return draw(batch, 4, cells, cells), draw(1, references, 4, cells, cells), draw(batch, 12)


def test_the_presets_have_the_papers_size():
    with torch.device("meta"):
        assert sum(p.numel() for p in EditorUNet(UNET_250M).parameters()) == pytest.approx(250e6, rel=0.03)
        assert sum(p.numel() for p in EditorUNet(UNET_MINI).parameters()) == pytest.approx(5.3e6, rel=0.03)


def test_a_fresh_editor_changes_nothing():
    latents, references, poses = inputs()
    network = EditorUNet(TINY)
    assert torch.equal(network(latents, network.prepare_references(references), poses), latents)


def test_a_batch_equals_its_frames_one_by_one(editor):
    latents, references, poses = inputs()
    context = editor.prepare_references(references)
    single = torch.cat([editor(z[None], context, p[None]) for z, p in zip(latents, poses, strict=False)])
    torch.testing.assert_close(editor(latents, context, poses), single, rtol=1e-4, atol=1e-5)


def test_one_clips_context_equals_the_same_references_per_frame(editor):
    latents, references, poses = inputs()
    repeated = editor.prepare_references(references.expand(3, -1, -1, -1, -1))
    shared = editor.prepare_references(references)
    torch.testing.assert_close(editor(latents, shared, poses), editor(latents, repeated, poses), rtol=1e-4, atol=1e-5)


def test_the_order_of_references_does_not_matter(editor):
    latents, references, poses = inputs(references=4)
    forward = editor(latents, editor.prepare_references(references), poses)
    torch.testing.assert_close(
        forward, editor(latents, editor.prepare_references(references.flip(1)), poses), rtol=1e-4, atol=1e-5
    )


def test_pose_and_references_both_matter(editor):
    latents, references, poses = inputs()
    result = editor(latents, editor.prepare_references(references), poses)
    assert not torch.allclose(result, editor(latents, editor.prepare_references(references), poses + 1), atol=1e-3)
    assert not torch.allclose(result, editor(latents, editor.prepare_references(references + 1), poses), atol=1e-3)


def test_the_reference_with_the_wanted_pose_is_copied():
    """With a sharp metric, the blend of references that the editor sees is the one whose lips do what is asked."""
    torch.manual_seed(0)
    network = EditorUNet(TINY)
    torch.nn.init.constant_(network.pose_metric, 5.0)
    latents, references, poses = inputs(references=3)
    read = torch.stack([poses[1] + 3, poses[1], poses[1] - 3])[None]
    context = network.prepare_references(references, read)
    likeness, missing = compare_poses(poses[1:2], context.poses, network.pose_metric)
    assert likeness.softmax(1)[0].tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    assert missing.abs().max() < 1e-5


def test_the_papers_editor_reads_equation_1_alone_and_copies_nothing():
    """Concat[z_masked, f_ref(z_ref), z_lips]: no reference's latents beside f_ref's features, and no reference's pose."""
    network = random_editor(dataclasses.replace(TINY, is_copying=False))
    latents, references, poses = inputs()
    assert network.conv_in.in_channels == 4 + TINY.reference_channels + 12 and network.conv_out.out_channels == 4
    context = network.prepare_references(references, torch.randn(1, 2, 12))
    edited = network(latents, context, poses)
    assert torch.equal(edited, network(latents, network.prepare_references(references), poses))
    assert torch.equal(edited, network(latents, dataclasses.replace(context, latents=context.latents + 1), poses))
    assert torch.equal(edited, latents + network.residual(latents, context, poses))  # Eq. 3
    assert not torch.allclose(edited, network(latents, network.prepare_references(references + 1), poses), atol=1e-3)
    assert {name for name, _ in EditorUNet(TINY).named_parameters()} - dict(network.named_parameters()).keys() == {"pose_metric"}


def test_a_config_of_version_0_1_0_copies():
    fields = {"channels": [16, 32], "encoder_blocks": [1, 1], "decoder_blocks": [1, 1], "pose_dim": 12, "latent_channels": 4}
    assert checkpoint.config_from_dict(EditorUNetConfig, fields).is_copying and not UNET_250M.is_copying


def test_poses_of_references_are_optional_and_matter(editor):
    latents, references, poses = inputs()
    read = torch.stack([poses[0], -poses[0]])[None]
    without = editor(latents, editor.prepare_references(references), poses)
    assert not torch.allclose(without, editor(latents, editor.prepare_references(references, read), poses), atol=1e-3)


def test_nothing_changes_outside_the_window():
    torch.manual_seed(0)
    network = EditorUNet(dataclasses.replace(TINY, window=(0.25, 0.5, 0.75, 1.0)))
    torch.nn.init.normal_(network.conv_out.weight)
    latents, references, poses = inputs()
    changed = network(latents, network.prepare_references(references), poses) != latents
    assert changed[:, :, 8:, 4:12].any()
    assert not changed[:, :, :8].any() and not changed[:, :, :, :4].any() and not changed[:, :, :, 12:].any()


@pytest.mark.parametrize("cells", [32, 64])
def test_crops_of_256_and_512_pixels_both_fit(editor, cells):
    latents, references, poses = inputs(1, 1, cells)
    assert editor(latents, editor.prepare_references(references), poses).shape == (1, 4, cells, cells)


def test_references_of_another_size_are_refused(editor):
    latents, references, poses = inputs()
    with pytest.raises(FlashLipsError, match="one size"):
        editor(latents, editor.prepare_references(references[..., :8, :8]), poses)


def test_poses_of_another_length_are_refused(editor):
    latents, references, poses = inputs()
    with pytest.raises(FlashLipsError, match="pose model that matches"):
        editor(latents, editor.prepare_references(references), poses[:, :8])


def test_every_weight_of_a_trained_editor_gets_a_gradient():
    torch.manual_seed(0)
    network = EditorUNet(TINY)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    latents, references, poses = inputs()
    read = torch.randn(1, 2, 12, generator=torch.Generator().manual_seed(2))
    network(latents, network.prepare_references(references, read), poses).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_deeper_editor_starts_from_a_shallow_one_and_draws_what_it_drew(editor):
    deeper = EditorUNet(dataclasses.replace(TINY, encoder_blocks=(2, 1), decoder_blocks=(1, 3))).eval()
    deeper.start_from(editor)
    z, references, poses = inputs()
    drawn = [network(z, network.prepare_references(references), poses) for network in (editor, deeper)]
    assert torch.allclose(*drawn, atol=1e-5) and not torch.allclose(drawn[0], z)


@pytest.mark.parametrize("changes", [{"channels": (16, 64)}, {"encoder_blocks": (1, 0)}, {"condition_dim": 32}])
def test_an_editor_of_other_blocks_is_no_start(editor, changes):
    with pytest.raises(FlashLipsError, match="Choose another start"):
        EditorUNet(dataclasses.replace(TINY, **changes)).start_from(editor)
