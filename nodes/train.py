"""Models of one's own: a clip of a person as training frames, the editor's training, and the pose model's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

from ..flashlips_core.audio import emotion_for, features_for
from ..flashlips_core.pixels import from_bytes
from ..flashlips_core.train.finetune.best_so_far import Tuned, best_of
from ..flashlips_core.train.finetune.codec import CodecTuning, tune_decoder
from ..flashlips_core.train.finetune.editor import FineTuning, fine_tune
from ..flashlips_core.train.finetune.person import SHORTEST_S, PersonFrames, prepare_person
from ..flashlips_core.train.finetune.report import curve_picture, progress_picture
from ..flashlips_core.train.finetune.speech import SHORTEST_S as STYLE_SHORTEST_S
from ..flashlips_core.train.finetune.speech import StyleTuning, tune_style
from ..flashlips_core.types import FaceTrack, LipPoses
from . import bridge, progress
from . import bridge_models as models
from .sockets import Dataset, Editor, LipEncoder, PoseModel, Poses, Track

CATEGORY = "FlashLips/train"
CONSENT = "Only with the consent of the person shown."


# ---- what the trainings share ----------------------------------------------------------------------------------------------


def steps_input(default: int) -> io.Int.Input:
    """How long."""
    tooltip = "How many steps at most. Higher = closer to the person, slower. Ends sooner where nothing is gained."
    return io.Int.Input("steps", default=default, min=1, max=100_000, optional=True, tooltip=tooltip)


def rate_input(default: float) -> io.Float.Input:
    """How hard."""
    return io.Float.Input(
        "learning_rate", default=default, min=1e-6, max=1e-2, step=1e-6, round=False, optional=True, advanced=True,
        tooltip="How far a step goes. Higher = faster, less stable.",
    )  # fmt: skip


def batch_input(default: int, fewest: int, most: int, what: str) -> io.Int.Input:
    """How many at once."""
    tooltip = f"{what} per step. Higher = steadier, slower, more memory."
    return io.Int.Input("batch", default=default, min=fewest, max=most, optional=True, advanced=True, tooltip=tooltip)


def seed_input(what: str) -> io.Int.Input:
    """In which order."""
    return io.Int.Input(
        "seed", default=0, min=0, max=2**31 - 1, control_after_generate=False, optional=True, advanced=True,
        tooltip=f"Another number = other {what} in another order.",
    )  # fmt: skip


def curve_of(done: Tuned) -> torch.Tensor:
    """A fine-tuning's curve as ComfyUI's image, (1, H, W, 3) in [0, 1]."""
    return torch.from_numpy(curve_picture(done.checks))[None].float() / 255


def _watching(run: progress.Run, out: Path, picture: Callable[[list, Any], torch.Tensor]) -> Callable[[list, Any], None]:
    """Shows each look at what is held out, and remembers what Cancel would keep."""

    def watch(checks: list, shown: Any) -> None:
        best = best_of(checks)
        run.kept = f"{out.name} holds the best so far, of step {best.step}: {best.sentence()}."
        run.show(picture(checks, shown))

    return watch


def _result(done: Tuned) -> str:
    """What a training gained, in one line."""
    steps, best = done.checks[-1].step, done.best
    if best is done.before:
        return f"{steps} steps gained nothing; {Path(done.path).name} holds what you started from: {best.sentence()}"
    return f"{steps} steps, the best is {best.step}: {best.sentence()}; before: {done.before.sentence()}. {Path(done.path).name}"


# ---- the nodes -------------------------------------------------------------------------------------------------------------


class PrepareDataset(io.ComfyNode):
    """A clip of one person -> training frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsPrepareDataset",
            display_name="Prepare Dataset",
            category=CATEGORY,
            description="Makes training frames of one clip of one person talking: crops, latents, lip poses, references. The "
            "last 15 % of the clip are held out to measure by. The result stays in memory and cached. " + CONSENT,
            inputs=[
                io.Video.Input("video", tooltip="The person talking, 20 s to 5 min; sound is not needed."),
                io.Vae.Input("vae", tooltip="From Load Codec."),
                LipEncoder.Input("lip_encoder", tooltip="From Load Lip Encoder; reads the lip pose of each frame."),
                Track.Input(
                    "track",
                    optional=True,
                    tooltip="From Track Face, of this same video. Not connected: the largest face is followed.",
                ),
                io.Float.Input(
                    "shortest",
                    default=SHORTEST_S,
                    min=2.0,
                    max=60.0,
                    step=1.0,
                    optional=True,
                    advanced=True,
                    tooltip="Seconds of visible face that a clip must have. Lower = shorter clips pass, with poorer results.",
                ),
                Editor.Input(
                    "editor",
                    optional=True,
                    tooltip="The editor that is to be fine-tuned: crops are cut at its size. Not connected: the bundled one's.",
                ),
            ],
            outputs=[
                Dataset.Output(display_name="dataset", tooltip="For the fine-tune nodes."),
                io.String.Output(display_name="report", tooltip="What was found in the clip, in words."),
            ],
        )

    @classmethod
    def execute(
        cls, video: Any, vae: Any, lip_encoder: models.LoadedNetwork, track: FaceTrack | None = None, shortest=SHORTEST_S,
        editor: models.LoadedNetwork | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        with progress.running("Reading the clip") as run, bridge.video_source(video, run) as path:
            with models.on_device(vae, lip_encoder):
                sync = models.lipsync(editor, vae, lip_encoder=lip_encoder)
                callbacks = {"progress": run.progress, "show": run.show}
                person = prepare_person(sync, path, track=track, shortest_s=shortest, **callbacks)
            run.finish(person.describe())
        return io.NodeOutput(person, person.describe())


class FineTuneLipEditor(io.ComfyNode):
    """An editor and training frames -> an editor for that person."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsFineTuneLipEditor",
            display_name="Fine-Tune Lip Editor",
            category=CATEGORY,
            description="Refines a lip editor for one person and saves it in models/flashlips, where Load Lip Editor finds it. "
            "What is kept is the best on held-out frames; Cancel keeps the best so far, and the same settings run again go on. "
            + CONSENT,
            inputs=[
                Editor.Input("editor", tooltip="The editor to start from, from Load Lip Editor; it stays as it is."),
                Dataset.Input("dataset", tooltip="From Prepare Dataset."),
                io.Vae.Input("vae", tooltip="From Load Codec, the one that the dataset was made with, or from Fine-Tune Codec."),
                LipEncoder.Input("lip_encoder", tooltip="From Load Lip Encoder; reads the edits back."),
                io.String.Input("name", default="my_editor", optional=True, tooltip="The new file's name in models/flashlips."),
                steps_input(400),
                io.Float.Input(
                    "minutes",
                    default=0.0,
                    min=0.0,
                    max=1440.0,
                    step=1.0,
                    optional=True,
                    tooltip="Train this many minutes instead of a number of steps; 0 = by steps.",
                ),
                io.Int.Input(
                    "lora_rank",
                    default=0,
                    min=0,
                    max=128,
                    optional=True,
                    tooltip="0 trains all weights. Above 0 trains low-rank additions of this rank; higher = more may change. "
                    "Large editors then take less memory.",
                ),
                rate_input(FineTuning.lr),
                batch_input(8, 4, 64, "Frame pairs"),
                seed_input("frames"),
            ],
            outputs=[
                Editor.Output(display_name="editor", tooltip="The best editor of the run, as Load Lip Editor would load it."),
                io.Image.Output(display_name="curve", tooltip="Likeness of held-out lips over the steps."),
                io.Image.Output(display_name="before_after", tooltip="Held-out mouths before and after."),
            ],
            is_output_node=True,  # the file is a result of its own
        )

    @classmethod
    def execute(
        cls, editor: models.LoadedNetwork, dataset: PersonFrames, vae: Any, lip_encoder: models.LoadedNetwork, name="my_editor",
        steps=400, minutes=0.0, lora_rank=0, learning_rate=FineTuning.lr, batch=8, seed=0,
    ) -> io.NodeOutput:  # fmt: skip
        out = models.new_model_path(name)
        settings = FineTuning(steps, minutes or None, learning_rate, batch, seed, lora=lora_rank)
        with progress.running("Training", steps) as run:
            codec = models.codec_of(vae)
            models.check_pair(editor, codec.latents)
            memory = models.train_bytes(batch, dataset.crop_px) + models.tune_bytes(editor.network, bool(lora_rank))
            done = fine_tune(
                editor, dataset, codec, lip_encoder.network, out, settings, run.progress,
                _watching(run, out, progress_picture), models.make_room(memory),
            )  # fmt: skip
            run.finish(_result(done))
        curve = curve_of(done)
        with Image.open(done.sheet) as sheet:
            pictures = torch.from_numpy(np.array(sheet.convert("RGB")))[None].float() / 255
        # no picture of its own on the node: ComfyUI's front end would show the last preview in its place, twice
        return io.NodeOutput(models.load_network("editor", out.name), curve, pictures)


class FineTuneCodec(io.ComfyNode):
    """A codec and training frames -> a codec whose decoder knows that person."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsFineTuneCodec",
            display_name="Fine-Tune Codec",
            category=CATEGORY,
            description="Lets a codec's decoder learn one person's face and saves the codec in models/flashlips, where Load "
            "Codec finds it: lips keep their colour, teeth their edges. The encoder stays, so the same editors fit. What is kept "
            "is the best on held-out frames; Cancel keeps the best so far, and the same settings run again go on. " + CONSENT,
            inputs=[
                io.Vae.Input("vae", tooltip="From Load Codec, a bundled one that the dataset was made with; it stays as it is."),
                Dataset.Input("dataset", tooltip="From Prepare Dataset."),
                io.String.Input("name", default="my_codec", optional=True, tooltip="The new file's name in models/flashlips."),
                steps_input(CodecTuning.steps),
                rate_input(CodecTuning.lr),
                batch_input(CodecTuning.batch, 1, 64, "Frames"),
                seed_input("frames"),
            ],
            outputs=[
                io.Vae.Output(display_name="vae", tooltip="The best codec of the run, as Load Codec would load it."),
                io.Image.Output(display_name="curve", tooltip="Likeness of held-out mouths over the steps."),
            ],
            is_output_node=True,  # the file is a result of its own
        )

    @classmethod
    def execute(
        cls, vae: Any, dataset: PersonFrames, name="my_codec", steps=CodecTuning.steps, learning_rate=CodecTuning.lr,
        batch=CodecTuning.batch, seed=0,
    ) -> io.NodeOutput:  # fmt: skip
        out, settings = models.new_model_path(name), CodecTuning(steps, lr=learning_rate, batch=batch, seed=seed)
        with progress.running("Training", steps) as run:
            done = tune_decoder(
                models.codec_of(vae), dataset, out, settings, run.progress,
                _watching(run, out, progress_picture),
                models.make_room(models.train_bytes(batch, dataset.crop_px)),
            )  # fmt: skip
            run.finish(_result(done))
        curve = curve_of(done)
        return io.NodeOutput(models.load_vae(out), curve)


class FineTunePoseModel(io.ComfyNode):
    """A pose model, a voice and the lips that spoke it -> a pose model that moves lips as that person does."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsFineTunePoseModel",
            display_name="Fine-Tune Pose Model",
            category=CATEGORY,
            description="Lets a pose model learn how one person moves their lips when they speak, from a clip with sound, and "
            "saves it in models/flashlips, where Load Pose Model finds it. What is kept is the best on the clip's held-out end; "
            "Cancel keeps the best so far, and the same settings run again go on. " + CONSENT,
            inputs=[
                PoseModel.Input("pose_model", tooltip="The pose model to start from, from Load Pose Model; it stays as it is."),
                io.AudioEncoderOutput.Input(
                    "features",
                    tooltip="The clip's own sound, from Encode Audio with the encoder that the pose model was trained with.",
                ),
                Poses.Input("poses", tooltip="What the lips do meanwhile, from the clip's start: from Encode Lip Poses."),
                io.String.Input("name", default="my_style", optional=True, tooltip="The new file's name in models/flashlips."),
                steps_input(StyleTuning.steps),
                rate_input(StyleTuning.lr),
                batch_input(StyleTuning.batch, 1, 256, "Stretches of speech"),
                io.Float.Input(
                    "shortest",
                    default=STYLE_SHORTEST_S,
                    min=2.0,
                    max=60.0,
                    step=1.0,
                    optional=True,
                    advanced=True,
                    tooltip="Seconds that sound and poses must have in common. Lower = shorter clips pass, with poorer results.",
                ),
                seed_input("stretches"),
            ],
            outputs=[
                PoseModel.Output(display_name="pose_model", tooltip="The best of the run, as Load Pose Model would load it."),
                io.Image.Output(display_name="curve", tooltip="How well held-out motion is foretold, over the steps."),
            ],
            is_output_node=True,  # the file is a result of its own
        )

    @classmethod
    def execute(
        cls, pose_model: models.LoadedNetwork, features: dict, poses: LipPoses, name="my_style", steps=StyleTuning.steps,
        learning_rate=StyleTuning.lr, batch=StyleTuning.batch, shortest=STYLE_SHORTEST_S, seed=0,
    ) -> io.NodeOutput:  # fmt: skip
        out, config = models.new_model_path(name), pose_model.network.config
        heard, emotion = features_for(features, config.audio_kind, config.audio_dim), emotion_for(features, config.emotion_dim)
        settings = StyleTuning(steps, lr=learning_rate, batch=batch, seed=seed)
        with progress.running("Training", steps) as run:
            done = tune_style(
                pose_model, heard, poses, out, settings, emotion, shortest, run.progress,
                _watching(run, out, lambda checks, _: from_bytes(curve_picture(checks))),
                models.make_room(models.tune_bytes(pose_model.network)),
            )  # fmt: skip
            run.finish(_result(done))
        curve = curve_of(done)
        return io.NodeOutput(models.load_network("pose-model", out.name), curve)


NODES = [PrepareDataset, FineTuneCodec, FineTuneLipEditor, FineTunePoseModel]
