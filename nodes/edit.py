"""The edit: a video that speaks another voice in one node, and the same with every part on its own wire."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..flashlips_core.checks import check_whole_track
from ..flashlips_core.images.edit import check_images, check_references, edit_images
from ..flashlips_core.media import probe
from ..flashlips_core.pipeline import DubSettings, Look, Report, plan_for
from ..flashlips_core.poses.sampling import SamplerSettings
from ..flashlips_core.steps import LIP_MOTION, SHARPEN, ClipSteps
from ..flashlips_core.types import POSE_DIM, FaceTrack, LipPoses, Recording
from . import bridge, progress, words
from . import bridge_models as models
from .edit_inputs import (
    CONSENT,
    PRESETS,
    batch_input,
    crf_input,
    edit_inputs,
    fit_input,
    length_input,
    sharpen_input,
    start_input,
    tag_input,
)
from .sockets import DETECTOR_DOWNLOAD, EDITOR_TOOLTIP, LipEncoder, download_input

CATEGORY = "FlashLips"
EDIT_CATEGORY = "FlashLips/edit"


class LipSync(io.ComfyNode):
    """The front door: a video and a voice, nothing else."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsLipSync",
            display_name="Lip Sync",
            category=CATEGORY,
            description="Makes the person in a video speak another voice, with the bundled networks: load video, load audio, "
            "this node, save video. Only the mouth changes; frames without a face stay as they are. " + CONSENT,
            search_aliases=[
                "dub",
                "lip sync",
                "lipsync",
                "talking head",
                "talking photo",
                "mouth",
                "voice",
                "wav2lip",
                "latentsync",
                "musetalk",
                "flashlips",
            ],  # fmt: skip
            inputs=[
                io.Video.Input("video", tooltip="The clip of a person talking; read frame by frame, of any length."),
                io.Audio.Input("audio", tooltip="The voice to be spoken; becomes the sound of the result, at its own rate."),
                io.Combo.Input(
                    "face",
                    options=["largest", "left", "right"],
                    default="largest",
                    optional=True,
                    tooltip="Who speaks where there are several: the largest face, or the one at the left or right.",
                ),
                length_input(),
                io.Float.Input(
                    "lip_motion",
                    default=LIP_MOTION,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    optional=True,
                    tooltip="How far the lips move. 1 = as sampled; a little more makes up for what the bundled editors hold "
                    "back; 0 = the mouth stays at rest.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    optional=True,
                    tooltip="Another number = another take of the lip motion.",
                ),
                io.Boolean.Input(
                    "close_in_silence",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="On = the mouth comes to rest where nobody speaks.",
                ),
                crf_input(),
                tag_input(),
                download_input(DETECTOR_DOWNLOAD),
                io.Combo.Input(
                    "editor",
                    options=models.model_files("editor"),
                    default=models.BUNDLED,
                    optional=True,
                    tooltip=EDITOR_TOOLTIP,
                ),
                sharpen_input(),
                start_input(),
                fit_input("the clip shows it"),
            ],
            outputs=[io.Video.Output(display_name="video", tooltip="The clip, speaking the voice; its sound is the voice.")],
        )

    @classmethod
    def fingerprint_inputs(cls, editor: str = models.BUNDLED, **others: Any) -> str:
        return f"{models.editor_fingerprint(editor)}:{models.detector_fingerprint()}"

    @classmethod
    def execute(
        cls,
        video: Any,
        audio: Any,
        face: str = "largest",
        length: str = "auto",
        lip_motion: float = LIP_MOTION,
        seed: int = 0,
        close_in_silence: bool = True,
        crf: int = 16,
        tag: bool = True,
        download: bool = False,
        editor: str = models.BUNDLED,
        sharpen: float = SHARPEN,
        start: str = DubSettings.start,
        fit: bool = True,
    ) -> io.NodeOutput:
        voice, out = bridge.audio_of(audio), bridge.temp_path(".mp4")
        drawer = models.load_network("editor", editor)
        settings = DubSettings(
            face, length=length, gain=lip_motion, fit=fit, sampler=SamplerSettings(seed=seed), gate=close_in_silence,
            batch=models.batch_size(DubSettings.batch), crf=crf, is_tagged=tag, mode=_mode(drawer),
            sharpen=sharpen, start=start,
        )  # fmt: skip
        pose_model, lip_encoder = (models.load_network(role, models.BUNDLED) for role in ("pose-model", "lip-encoder"))
        vae, listener = models.load_vae(drawer.codec_source), models.load_audio_encoder(models.BUNDLED)
        parts = (drawer, vae, pose_model, lip_encoder, listener)
        with progress.running("Loading networks") as run, bridge.video_source(video, run) as path:
            if download:
                models.fetch_detector(run)
            _notice_length(run, path, voice, settings)
            with models.on_device(*parts, memory_bytes=memory_of(drawer, settings.batch)):
                report = models.lipsync(*parts).dub(path, voice, out, settings, **_callbacks(run))
            run.finish(words.dubbed(report.frames, report.without_face, voice.duration))
        return io.NodeOutput(bridge.output_video(out))


class LipSyncVideo(io.ComfyNode):
    """A clip, its track and poses -> the clip with that mouth."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsLipSyncVideo",
            display_name="Lip-Sync Video",
            category=EDIT_CATEGORY,
            description="Gives the tracked face of a video the mouth of these poses, frame by frame from file to file: memory "
            "does not grow with the clip. For two speakers chain two of these, each with its own track. " + CONSENT,
            inputs=[
                io.Video.Input("video", tooltip="The clip that was tracked."),
                *edit_inputs("From Track Face, of this same video. Frames without the face stay as they are.", "frame"),
                LipEncoder.Input(
                    "lip_encoder",
                    optional=True,
                    tooltip="Chooses the reference frames by their mouths; bundled where not connected.",
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="The sound of the result, at its own rate. Not connected: the video's own, untouched.",
                ),
                io.Image.Input(
                    "references",
                    optional=True,
                    tooltip="Crops that show the editor this person's mouth, from Crop Faces; twenty are best. Not connected: "
                    "chosen in the clip.",
                ),
                length_input(),
                batch_input(),
                crf_input(),
                io.Combo.Input(
                    "preset",
                    options=PRESETS,
                    default="veryfast",
                    optional=True,
                    advanced=True,
                    tooltip="Speed of the video encoder; slower = a smaller file of the same quality.",
                ),
                tag_input(),
                sharpen_input(),
                start_input(),
            ],
            outputs=[io.Video.Output(display_name="video", tooltip="The clip with another mouth; the rest as it was.")],
        )

    @classmethod
    def execute(
        cls,
        video: Any,
        track: FaceTrack,
        poses: LipPoses,
        editor: models.LoadedNetwork,
        vae: Any,
        lip_encoder: models.LoadedNetwork | None = None,
        audio: Any = None,
        references: torch.Tensor | None = None,
        length: str = "auto",
        batch: int = 8,
        crf: int = 16,
        preset: str = "veryfast",
        tag: bool = True,
        sharpen: float = SHARPEN,
        start: str = DubSettings.start,
    ) -> io.NodeOutput:
        sound, out = None if audio is None else bridge.audio_of(audio), bridge.temp_path(".mp4")
        settings = DubSettings(
            length=length, batch=models.batch_size(batch), crf=crf, preset=preset, is_tagged=tag, mode=_mode(editor),
            sharpen=sharpen, start=start,
        )  # fmt: skip
        lip_encoder = lip_encoder or models.load_network("lip-encoder", models.BUNDLED)
        with progress.running("Loading networks", len(track)) as run, bridge.video_source(video, run) as path:
            check_whole_track(track, probe(path))
            if sound is not None:
                _notice_length(run, path, sound, settings)
            with models.on_device(editor, vae, lip_encoder, memory_bytes=memory_of(editor, batch)):
                sync = models.lipsync(editor, vae, lip_encoder=lip_encoder)
                look = _look(sync, path, track, settings, references, run)
                done = sync.edit_video(path, track, poses, out, settings, audio=sound, references=look, **_callbacks(run))
            _notice_poses(run, poses, done)
            run.finish(words.dubbed(done.frames, done.without_face, None if sound is None else sound.duration))
        return io.NodeOutput(bridge.output_video(out))


class LipSyncImages(io.ComfyNode):
    """A short batch of images, edited in memory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsLipSyncImages",
            display_name="Lip-Sync Images",
            category=EDIT_CATEGORY,
            description="Gives the tracked face of an image batch the mouth of these poses; pixels that do not change keep their "
            "exact values. For short batches: a clip belongs to Lip-Sync Video, which does not hold it in memory. Images carry "
            "no note: dub people only with their consent, and say wherever you show the result that it was changed.",
            inputs=[
                io.Image.Input("images", tooltip="The frames that were tracked, in order."),
                *edit_inputs("From Track Face, of these same images; it also knows their rate.", "image"),
                io.Image.Input(
                    "references",
                    optional=True,
                    tooltip="Crops that show the editor this person's mouth, from Crop Faces. Not connected: chosen here.",
                ),
                LipEncoder.Input(
                    "lip_encoder",
                    optional=True,
                    tooltip="Reads what the lips of the references do. Not connected: the bundled one, for poses of its kind.",
                ),
                batch_input(),
                sharpen_input(),
                start_input(),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The images with another mouth; the rest as it was.")],
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        track: FaceTrack,
        poses: LipPoses,
        editor: models.LoadedNetwork,
        vae: Any,
        references: torch.Tensor | None = None,
        lip_encoder: models.LoadedNetwork | None = None,
        batch: int = 8,
        sharpen: float = SHARPEN,
        start: str = DubSettings.start,
    ) -> io.NodeOutput:
        pictures = bridge.pictures_of(images)
        check_images(pictures, track)
        crops = None if references is None else _crops_of(references)
        lip_encoder = lip_encoder or models.load_network("lip-encoder", models.BUNDLED)
        with progress.running("Editing images", len(images)) as run:
            with models.on_device(editor, vae, lip_encoder, memory_bytes=memory_of(editor, batch)):
                sync = models.lipsync(editor, vae, lip_encoder=lip_encoder)
                how = (models.batch_size(batch), sharpen, start, run.progress, run.show)
                result = edit_images(sync, pictures, track, poses, crops, *how)
            run.finish(words.dubbed(len(pictures), int((~track.present).sum()), None))
        return io.NodeOutput(bridge.images_of(result))


def _mode(editor: models.LoadedNetwork) -> str:
    return "masked" if editor.is_stage_1 else "mask-free"


def _callbacks(run: progress.Run) -> dict[str, Any]:
    return {"progress": run.progress, "show": run.show, "stage": run.stage}


def _notice_length(run: progress.Run, path: str, voice: Recording, settings: DubSettings) -> None:
    """Say what will be cut or lengthened."""
    clip = probe(path)
    shown_s = len(plan_for(clip, clip.num_frames, voice, settings)) / clip.fps
    run.notice(words.fitted(clip.duration, voice.duration, shown_s, settings.length, clip.num_frames))


def _notice_poses(run: progress.Run, poses: LipPoses, done: Report) -> None:
    """Say where the poses end before the picture does."""
    moved_s, shown_s = len(poses) / poses.fps, done.frames / done.fps
    if moved_s < float(shown_s) - words.SMALLEST_S:
        run.notice(f"The poses end at {words.seconds(moved_s)}; the last one is held up to {words.seconds(shown_s)}.")


def memory_of(editor: models.LoadedNetwork, batch: int) -> int:
    """Bytes for editing so many crops at once."""
    return models.edit_bytes(batch, editor.crop_px)


def _crops_of(images: torch.Tensor) -> torch.Tensor:
    """IMAGE -> (B, 3, H, W) float32 in [-1, 1] on the CPU."""
    return bridge.pictures_of(images).detach().float().cpu() * 2 - 1


def _look(
    sync: ClipSteps, path: str, track: FaceTrack, settings: DubSettings, references: torch.Tensor | None, run: progress.Run
) -> Look:
    """What the clip shows of the person, with reference images in place of its own, where there are any."""
    given = None if references is None else check_references(_crops_of(references), sync.crop_px)
    if given is not None and not settings.is_retrieved:
        return Look(given, [], torch.zeros(0, POSE_DIM))  # nothing else of the clip is needed
    run.stage("Choosing references", len(track))
    look = sync.look(path, track, settings.num_references, run.progress)
    return look if given is None else look.with_references(given)


NODES = [LipSync, LipSyncVideo, LipSyncImages]
