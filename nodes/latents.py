"""The editor itself, for latents that other nodes make and take."""

from __future__ import annotations

from functools import partial

from comfy_api.latest import io

from ..flashlips_core.codec import CELL_PX, SDXL_SCALE
from ..flashlips_core.images.latents import check_latents, edit_latents
from ..flashlips_core.types import FlashLipsError, LipPoses
from . import bridge_models as models
from . import progress, words
from .edit import EDIT_CATEGORY, memory_of
from .sockets import Editor, Poses


class EditLatents(io.ComfyNode):
    """The editor itself, between VAE Encode and VAE Decode."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsEditLatents",
            display_name="Edit Lip Latents",
            category=EDIT_CATEGORY,
            description="The lip editor alone: latents of face crops (Crop Faces, then VAE Encode) become latents with another "
            "mouth (then VAE Decode, Paste Faces).",
            inputs=[
                Editor.Input("editor", tooltip="From Load Lip Editor."),
                io.Latent.Input("target", tooltip="Face crops to change, from VAE Encode with a VAE in SDXL's latent space."),
                io.Latent.Input("references", tooltip="Crops of the same person and size that show the mouth; twenty are best."),
                Poses.Input("poses", tooltip="One per target latent; more are cut off."),
                Poses.Input(
                    "reference_poses",
                    optional=True,
                    tooltip="What the mouths of the references do, from Encode Lip Poses of their crops: the editor then knows "
                    "which one to look at. Not connected: it judges by the latents.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    optional=True,
                    tooltip="1 = the edit, 0 = the target as it is, above 1 = exaggerated.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The target with another mouth, for VAE Decode.")],
        )

    @classmethod
    def execute(
        cls,
        editor: models.LoadedNetwork,
        target: dict,
        references: dict,
        poses: LipPoses,
        reference_poses: LipPoses | None = None,
        strength: float = 1.0,
    ) -> io.NodeOutput:
        samples, shown = target["samples"] * SDXL_SCALE, references["samples"] * SDXL_SCALE
        check_latents(samples, shown, poses)
        _check_crops(editor, CELL_PX * samples.shape[-1])
        batch = models.batch_size(8)
        with (
            progress.running("Editing latents", len(samples)) as run,
            models.on_device(editor, memory_bytes=memory_of(editor, batch)),
        ):
            settings = (reference_poses, strength, editor.is_stage_1, batch)
            callbacks = {"progress": run.progress, "show": lambda latent: run.show(partial(models.latent_picture, latent))}
            edited = edit_latents(editor.network, samples, shown, poses, *settings, **callbacks)
            run.finish(words.count(len(samples), "latent") + " edited")
        return io.NodeOutput({**target, "samples": edited / SDXL_SCALE})


def _check_crops(editor: models.LoadedNetwork, side: int) -> None:
    """Refuse latents of another crop size than the editor's file names; a file that names none may be of any."""
    if side != int(editor.notes.get("crop_px", side)):
        raise FlashLipsError(
            f"These are latents of {side} px crops, and the editor '{editor.name}' was trained on {editor.crop_px} px; "
            f"set Crop Faces to {editor.crop_px}, or choose another editor."
        )


NODES = [EditLatents]
