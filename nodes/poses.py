"""Lip poses: from sound, from a face, edited and looked at. T frames."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..flashlips_core.audio import (
    emotion_for,
    encoded_audio,
    features_for,
    is_classifier,
    known_features,
    level_db,
    to_mono_16k,
    with_emotion,
)
from ..flashlips_core.checks import check_whole_track
from ..flashlips_core.drawings.poses import draw_poses
from ..flashlips_core.flow import SOLVERS
from ..flashlips_core.images.poses import poses_from_images
from ..flashlips_core.media import probe
from ..flashlips_core.poses.motion import frame_rate, resample, spread
from ..flashlips_core.poses.operations import Surroundings, apply_operations, from_json, simple_operations
from ..flashlips_core.poses.sampling import SamplerSettings, sample_poses
from ..flashlips_core.poses.silence import silence_gate
from ..flashlips_core.types import SAMPLE_RATE, FaceTrack, FlashLipsError, LipPoses
from . import bridge, progress, words
from . import bridge_models as models
from .edit_inputs import fit_input
from .sockets import DETECTOR_DOWNLOAD, LipEncoder, PoseModel, Poses, Track, download_input, fps_input
from .timeline import timeline_ui

log = logging.getLogger(__name__)

CATEGORY = "FlashLips/poses"
NUM_SOURCES = 32  # poses of the person that the pose model sees, as many as Lip Sync gives it
NO_EMOTION = "none"
NO_LEVEL = "The lips are not closed in silence: these features do not say how loud the sound is; make them with Encode Audio."
ENCODE_BYTES = 1 << 28  # activations of an audio or lip encoder, generously


class EncodeAudio(io.ComfyNode):
    """Sound -> what an audio encoder hears."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsEncodeAudio",
            display_name="Encode Audio",
            category=CATEGORY,
            description="Turns a voice into features for Sample Lip Poses. The audio encoder must be the one that the pose model "
            "was trained with; ComfyUI's own Audio Encoder Encode works too where the pose model listens to such a network.",
            inputs=[
                io.AudioEncoder.Input("audio_encoder", tooltip="From Load Audio Encoder, FlashLips' or ComfyUI's own."),
                io.Audio.Input("audio", tooltip="The voice, at any sample rate; channels are averaged. Music moves lips too."),
                io.Combo.Input(
                    "emotion_encoder",
                    options=[NO_EMOTION, *_classifiers()],
                    default=NO_EMOTION,
                    optional=True,
                    advanced=True,
                    tooltip="For pose models that listen to emotion: the audio classifier that they were trained with, a folder "
                    "in Hugging Face's format in models/audio_encoders or models/flashlips. The bundled pose model needs none.",
                ),
            ],
            outputs=[io.AudioEncoderOutput.Output(display_name="features", tooltip="What was heard, 50 or so rows a second.")],
        )

    @classmethod
    def fingerprint_inputs(cls, emotion_encoder: str = NO_EMOTION, **others: Any) -> str:
        return models.fingerprint(emotion_encoder, "audio_encoders")

    @classmethod
    def execute(cls, audio_encoder: Any, audio: dict, emotion_encoder: str = NO_EMOTION) -> io.NodeOutput:
        samples = to_mono_16k(bridge.audio_of(audio))
        with progress.running("Listening") as run:
            with models.on_device(audio_encoder, memory_bytes=ENCODE_BYTES):
                if hasattr(audio_encoder, "encoder"):
                    encoded = encoded_audio(audio_encoder.encoder.encode(samples, run.progress), len(samples))
                else:  # ComfyUI's own
                    encoded = audio_encoder.encode_audio(audio["waveform"].float().cpu(), audio["sample_rate"])
            if emotion_encoder != NO_EMOTION:
                run.beat()
                classifier = models.load_emotion_encoder(_classifier(emotion_encoder))
                with models.on_device(classifier, memory_bytes=ENCODE_BYTES):
                    encoded = with_emotion(encoded, classifier.encoder.encode(samples, run.progress))
            run.finish(f"{words.seconds(len(samples) / SAMPLE_RATE)} of sound heard")
        return io.NodeOutput(encoded)


class SamplePoses(io.ComfyNode):
    """What was heard -> lip poses."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsSamplePoses",
            display_name="Sample Lip Poses",
            category=CATEGORY,
            description="Makes the lip motion for a voice: one pose of 12 numbers per frame. Another seed is another take.",
            search_aliases=["voice to lips", "talking", "audio to motion", "speech"],
            inputs=[
                PoseModel.Input("pose_model", tooltip="From Load Pose Model."),
                io.AudioEncoderOutput.Input(
                    "features", tooltip="The voice, from Encode Audio with the encoder that the pose model was trained with."
                ),
                Poses.Input(
                    "source_poses",
                    optional=True,
                    tooltip="Poses of the person to be dubbed, from Encode Lip Poses: the lips then move as this person's do. "
                    "32 poses spread over the track are used. Without it: the pose model's own rest pose.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    optional=True,
                    tooltip="Which take: the same seed gives the same poses.",
                ),
                io.Int.Input(
                    "steps",
                    default=4,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip="Steps of the solver. Higher = slower; 4 suffice.",
                ),
                io.Combo.Input(
                    "solver",
                    options=list(SOLVERS),
                    default="euler",
                    optional=True,
                    advanced=True,
                    tooltip="How a step is made. Midpoint and heun are more exact and take twice as long.",
                ),
                io.Float.Input(
                    "guidance",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    optional=True,
                    advanced=True,
                    tooltip="How hard the lips follow the voice. 1 = as trained, higher = harder (twice the time), 0 = not.",
                ),
                io.Float.Input(
                    "temperature",
                    default=0.3,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    optional=True,
                    tooltip="Variety. 0 = the same calm take for every seed, 1 = as varied as people are; lower = follows the "
                    "jaw better.",
                ),
                fps_input(
                    "Poses per second of the output; 29.97 means 30000/1001. Lip-Sync Video fits any rate to its clip; "
                    "this matters only where frames are counted, as in Edit Lip Poses."
                ),
                io.Boolean.Input(
                    "close_in_silence",
                    default=True,
                    optional=True,
                    tooltip="Brings the lips to rest where the sound holds no speech.",
                ),
                fit_input("the source poses show it"),
            ],
            outputs=[Poses.Output(display_name="poses", tooltip="One lip pose of 12 numbers per frame.")],
        )

    @classmethod
    def execute(
        cls, pose_model: models.LoadedNetwork, features: dict, source_poses=None, seed=0, steps=4, solver="euler",
        guidance=1.0, temperature=0.3, fps=25.0, close_in_silence=True, fit=True,
    ) -> io.NodeOutput:  # fmt: skip
        ours = known_features(features)
        pose_model = pose_model if ours is None else models.listening(pose_model, ours.kind)
        network = pose_model.network
        heard = features_for(features, network.config.audio_kind, network.config.audio_dim)
        emotion = emotion_for(features, network.config.emotion_dim)
        sources = None if source_poses is None else spread(source_poses, NUM_SOURCES)
        settings = SamplerSettings(steps, solver, guidance, temperature, seed)
        with progress.running("Making the lip motion") as run, models.on_device(pose_model, memory_bytes=ENCODE_BYTES):
            poses = sample_poses(network, heard, sources, settings, emotion, run.progress)
            rest = network.rest_pose.float().cpu()
            if close_in_silence and len(heard.level_db):
                poses = silence_gate(poses, heard, rest)
            elif close_in_silence:
                run.notice(NO_LEVEL)
            if fit and source_poses is not None:
                lip_encoder = models.load_network("lip-encoder", models.BUNDLED)
                poses = models.lipsync(pose_model=pose_model, lip_encoder=lip_encoder).fitted(poses, sources)
            poses = resample(poses, frame_rate(fps))
            run.finish(f"{words.count(len(poses), 'pose')} for {words.seconds(len(poses) / poses.fps)} of voice")
        return io.NodeOutput(poses)


class EncodePoses(io.ComfyNode):
    """A face in a video or in images -> its lip poses."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsEncodePoses",
            display_name="Encode Lip Poses",
            category=CATEGORY,
            description="Reads the lip motion of a person, one pose per frame: to drive another face with this performance, or "
            "as source poses of the person to be dubbed. Frames without a face are filled from their neighbours.",
            inputs=[
                LipEncoder.Input("lip_encoder", tooltip="From Load Lip Encoder; the one that the editor was trained with."),
                io.Video.Input("video", optional=True, tooltip="The performance, read frame by frame. Connect this or images."),
                io.Image.Input("images", optional=True, tooltip="Its frames in order, instead of a video."),
                Track.Input(
                    "track",
                    optional=True,
                    tooltip="Where the face is, from Track Face. Without it the largest face is tracked here.",
                ),
                fps_input(),
                download_input("For tracking here. " + DETECTOR_DOWNLOAD),
            ],
            outputs=[Poses.Output(display_name="poses", tooltip="One lip pose of 12 numbers per frame.")],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        return models.detector_fingerprint()

    @classmethod
    def execute(
        cls, lip_encoder: models.LoadedNetwork, video=None, images=None, track: FaceTrack | None = None, fps=25.0, download=False
    ) -> io.NodeOutput:
        bridge.check_one_clip(video, images)
        lipsync = models.lipsync(lip_encoder=lip_encoder)
        with progress.running("Reading the lips") as run, models.on_device(lip_encoder, memory_bytes=ENCODE_BYTES):
            if download and track is None:
                models.fetch_detector(run)
            if images is not None:
                pictures, rate = bridge.pictures_of(images), frame_rate(fps)
                poses = poses_from_images(lipsync, pictures, rate, track, progress=run.progress, show=run.show)
                return cls._done(run, poses, track)
            with bridge.video_source(video, run) as path:
                clip = probe(path)
                if track is None:
                    run.stage("Finding the face", clip.num_frames)
                    track = lipsync.track(path, progress=run.progress, show=run.show)
                check_whole_track(track, clip)
                run.stage("Reading the lips", len(track))
                return cls._done(run, lipsync.poses_from_video(path, track, progress=run.progress, show=run.show), track)

    @classmethod
    def _done(cls, run: progress.Run, poses: LipPoses, track: FaceTrack | None) -> io.NodeOutput:
        absent = 0 if track is None else int((~track.present).sum())
        filled = f", {absent} of them filled in where no face is seen" if absent else ""
        run.finish(f"{words.count(len(poses), 'pose')}, {float(poses.fps):.5g} a second{filled}")
        return io.NodeOutput(poses)


class EditPoses(io.ComfyNode):
    """A track of lip poses, changed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsEditPoses",
            display_name="Edit Lip Poses",
            category=CATEGORY,
            description="Changes lip motion before it is applied: strength, smoothness, timing, a mix with another track, closed "
            "lips in silence, and edits of single ranges on a timeline. The sliders act first, in this order: mix, gain, "
            "smoothing, silence, offset; then the timeline's edits.",
            has_intermediate_output=True,  # else ComfyUI does not send a cached track again, to a page that was reloaded
            inputs=[
                Poses.Input("poses", tooltip="The track to edit."),
                Poses.Input(
                    "other", optional=True, tooltip="A second track to mix in; it is fitted to the first one's rate and length."
                ),
                io.AudioEncoderOutput.Input(
                    "features", optional=True, tooltip="The voice, from Encode Audio: what 'close in silence' listens to."
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where to mix: the brightness of mask k is the share of the other track in frame k. One mask = the "
                    "same everywhere.",
                ),
                PoseModel.Input(
                    "pose_model",
                    optional=True,
                    tooltip="Whose rest pose is 'closed lips'. Without it: the bundled pose model's.",
                ),
                *_sliders(),
                io.Boolean.Input(
                    "close_in_silence",
                    default=True,
                    optional=True,
                    tooltip="Brings the lips to rest where the sound holds no speech; acts only where features are connected.",
                ),
                io.String.Input(
                    "operations",
                    default="[]",
                    multiline=True,
                    optional=True,
                    tooltip="What the timeline does, as a JSON list: edits applied in order, in frames of the track, for example "
                    '[{"op": "hold", "start": 50, "stop": 60, "fade": 3}]. Operations: gain, smooth, shift, hold, mix, gate, '
                    "keys, rest, draw, copy; the node's help lists their fields.",
                ),
                io.Audio.Input(
                    "audio", optional=True, tooltip="The voice: drawn behind the curves of the timeline, and played with them."
                ),
            ],
            outputs=[Poses.Output(display_name="poses", tooltip="The edited track.")],
        )

    @classmethod
    def validate_inputs(cls, operations: str | None = None) -> bool | str:
        try:
            from_json(operations or "[]")  # None: it comes over a wire
        except FlashLipsError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, poses: LipPoses, other=None, features=None, mask=None, pose_model=None, expression_gain=1.0, mouth_gain=1.0,
        smoothing_ms=0.0, offset_ms=0.0, mix=0.0, close_in_silence=True, operations="[]", audio=None,
    ) -> io.NodeOutput:  # fmt: skip
        network = (pose_model or models.load_network("pose-model", models.BUNDLED)).network
        heard = None if features is None else known_features(features)
        weights = None if mask is None else mask.reshape(len(mask), -1).float().cpu().mean(1)
        around = Surroundings(network.rest_pose.float().cpu(), other, heard, weights)
        is_gated = close_in_silence and heard is not None
        if close_in_silence and features is not None and heard is None:
            log.warning(NO_LEVEL)
        sliders = simple_operations(
            poses.fps, expression_gain, mouth_gain, smoothing_ms, offset_ms, mix, mask is not None, is_gated
        )
        edits = from_json(operations)  # a wrong list is said before any work
        poses = apply_operations(poses, sliders, around, "Slider")
        return io.NodeOutput(apply_operations(poses, edits, around), ui=timeline_ui(poses, around, audio))


class PreviewPoses(io.ComfyNode):
    """A track of lip poses as a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsPreviewPoses",
            display_name="Preview Lip Poses",
            category=CATEGORY,
            description="Draws the 12 pose numbers and the mouth opening over time, with the sound behind them.",
            is_output_node=True,
            inputs=[
                Poses.Input("poses", tooltip="The track to draw."),
                Poses.Input("other", optional=True, tooltip="A second track, drawn thin for comparison."),
                io.Audio.Input("audio", optional=True, tooltip="The voice; its loudness is drawn behind the curves."),
                LipEncoder.Input(
                    "lip_encoder", optional=True, tooltip="Reads the mouth opening from poses. Without it: the bundled one."
                ),
            ],
            outputs=[io.Image.Output(display_name="picture", tooltip="The picture that the node shows.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, poses: LipPoses, other=None, audio=None, lip_encoder=None) -> io.NodeOutput:
        network = (lip_encoder or models.load_network("lip-encoder", models.BUNDLED)).network

        def opening(values: Tensor) -> Tensor:
            return network.opening(values.to(network.opening_weight))

        level = None if audio is None else level_db(to_mono_16k(bridge.audio_of(audio)))
        picture = torch.from_numpy(draw_poses(poses, opening, other, level).copy())[None].float() / 255
        return io.NodeOutput(picture, ui=ui.PreviewImage(picture, cls=cls))


NODES = [EncodeAudio, SamplePoses, EncodePoses, EditPoses, PreviewPoses]


def _sliders() -> list[io.Float.Input]:
    """The plain controls of Edit Lip Poses."""

    def slider(name: str, default: float, low: float, high: float, step: float, tooltip: str) -> io.Float.Input:
        return io.Float.Input(name, default=default, min=low, max=high, step=step, optional=True, tooltip=tooltip)

    gain = "numbers around rest. 1 = unchanged, higher = more motion, 0 = still."
    return [
        slider("expression_gain", 1.0, 0.0, 4.0, 0.05, f"Strength of the 8 expression {gain}"),
        slider("mouth_gain", 1.0, 0.0, 4.0, 0.05, f"Strength of the 4 mouth {gain}"),
        slider("smoothing_ms", 0.0, 0.0, 1000.0, 5.0, "Averages over about this many milliseconds. Higher = calmer, 0 = off."),
        slider("offset_ms", 0.0, -2000.0, 2000.0, 5.0, "Moves the lips in time, in milliseconds. Positive = later."),
        slider("mix", 0.0, 0.0, 1.0, 0.05, "Share of the other track: 0 = none, 1 = that alone. A mask multiplies it."),
    ]


def _classifiers() -> dict[str, Path]:
    """Audio classifiers in ComfyUI's folders by name, those that it searches first winning."""
    roots = [root for kind in ("audio_encoders", models.FOLDER) for root in models.model_folders(kind) if root.is_dir()]
    folders = [path for root in roots for path in sorted(root.iterdir()) if is_classifier(path)]
    return {path.name: path for path in reversed(folders)}


def _classifier(name: str) -> Path:
    """The folder behind a combo's name."""
    folder = _classifiers().get(name)
    if folder is None:
        raise FlashLipsError(f"There is no audio classifier '{name}' any more; refresh the node list (R) and choose another.")
    return folder
