"""Where the face is: track it, look at the track, and cut crops for other nodes and paste them back.

Images of ComfyUI are (B, H, W, C) in [0, 1]. The core only resamples and blends them, so they keep that range, and pixels
that nobody edits keep their bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..flashlips_core.drawings.sheets import spread
from ..flashlips_core.drawings.track import pick_pictures, track_sheet
from ..flashlips_core.face import Which, reference_face, track_faces
from ..flashlips_core.images.frames import as_frames, check_track_of_images, cut_images, images_info, paste_alpha, paste_images
from ..flashlips_core.media import probe, read_frames
from ..flashlips_core.poses.motion import frame_rate
from ..flashlips_core.stream import counted, prefetch
from ..flashlips_core.types import ClipInfo, FaceTrack, FlashLipsError, Frame
from . import bridge, progress, words
from . import bridge_models as models
from .sockets import DETECTOR_DOWNLOAD, Track, download_input, fps_input

CATEGORY = "FlashLips/face"
FACES = ["largest", "left", "right", "index", "reference"]
STABILISE = ["smooth", "fixed-size", "fixed", "auto", "none"]
DECODED_AHEAD = 16  # frames


class TrackFace(io.ComfyNode):
    """Video or images -> where one face is in every frame."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsTrackFace",
            display_name="Track Face",
            category=CATEGORY,
            description="Follows one face through a video or an image batch, by 99 landmarks; its square turns with the head. "
            "The result is small and stays cached: changing the voice or the seed does not track again. Frames without the face "
            "are left as they are by all later nodes.",
            search_aliases=["face detection", "find face", "landmarks", "face tracking"],
            inputs=[
                io.Video.Input("video", optional=True, tooltip="The clip, read frame by frame. Connect this or images."),
                io.Image.Input("images", optional=True, tooltip="Its frames in order, instead of a video."),
                io.Combo.Input(
                    "face",
                    options=FACES,
                    default="largest",
                    optional=True,
                    tooltip="Which face where there are several, judged anew after each cut: the largest (and most seen) one, "
                    "the leftmost or rightmost as seen on screen, the index-th from the left, or the one that looks like "
                    "the reference picture.",
                ),
                io.Int.Input(
                    "index",
                    default=0,
                    min=0,
                    max=99,
                    optional=True,
                    tooltip="With face 'index': which face, counted from the left; 0 is the leftmost, higher is further right.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="With face 'reference': a picture of the person, as they look in the clip.",
                ),
                fps_input(),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    min=0.4,
                    max=0.95,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Lowest score of the detector, 0 to 1, that counts as a face. Higher = fewer false faces, lower = "
                    "fewer lost ones.",
                ),
                io.Int.Input(
                    "every",
                    default=1,
                    min=1,
                    max=30,
                    optional=True,
                    advanced=True,
                    tooltip="Look for the face in every n-th frame and interpolate between. Higher = faster, less exact when "
                    "the head moves quickly.",
                ),
                io.Combo.Input(
                    "stabilise",
                    options=STABILISE,
                    default="smooth",
                    optional=True,
                    advanced=True,
                    tooltip="How the crop is kept from shaking, from the freest to the stillest: none (as the landmarks lie), "
                    "smooth (follows softly), fixed-size (follows, never scales), fixed (one square per scene); auto takes "
                    "the stillest that fits.",
                ),
                download_input(DETECTOR_DOWNLOAD),
            ],
            outputs=[Track.Output(display_name="track", tooltip="Where the face is in each frame; small, and cached.")],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        return models.detector_fingerprint()

    @classmethod
    def execute(
        cls, video=None, images=None, face="largest", index=0, reference=None, fps=25.0,
        threshold=0.5, every=1, stabilise="smooth", download=False,
    ) -> io.NodeOutput:  # fmt: skip
        with progress.running("Finding the face") as run:
            if download:
                models.fetch_detector(run)
            detector = models.detector()
            which = _wanted_face(face, index, reference, detector)
            with _clip(run, video, images, fps) as (frames, info):
                seen = counted(frames, info.num_frames, show=run.show)
                run.stage("Finding the face", info.num_frames)
                track = track_faces(seen, info, detector, which, every, stabilise, threshold, run.progress)
            run.finish(words.tracked(track.present, 1 if track.scene is None else int(track.scene.max()) + 1, track.fps))
        return io.NodeOutput(track)


class PreviewTrack(io.ComfyNode):
    """A track as a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsPreviewTrack",
            display_name="Preview Track",
            category=CATEGORY,
            description="Shows frames spread over the clip with the turned square that will be edited, eyes, nose and mouth "
            "corners, and a strip of where the face is seen. Without a video or images the frames are empty.",
            is_output_node=True,
            inputs=[
                Track.Input("track", tooltip="From Track Face."),
                io.Video.Input("video", optional=True, tooltip="The clip that was tracked. Connect this or images, or nothing."),
                io.Image.Input("images", optional=True, tooltip="The images that were tracked, instead of a video."),
                io.Int.Input(
                    "frames",
                    default=12,
                    min=1,
                    max=60,
                    optional=True,
                    tooltip="How many frames are shown. Higher = larger sheet.",
                ),
            ],
            outputs=[io.Image.Output(display_name="sheet", tooltip="The picture that the node shows.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, track: FaceTrack, video=None, images=None, frames=12) -> io.NodeOutput:
        indices, pictures = spread(len(track), frames), None
        if images is not None:
            check_track_of_images(track, bridge.pictures_of(images))
        if video is not None or images is not None:
            with progress.running("Reading frames") as run, _clip(run, video, images, float(track.fps)) as (stream, _):
                pictures = pick_pictures(stream, track, indices, run.progress)
        sheet = torch.from_numpy(track_sheet(track, indices, pictures))[None].float() / 255
        return io.NodeOutput(sheet, ui=ui.PreviewImage(sheet, cls=cls))


class CropFaces(io.ComfyNode):
    """The tracked face of each image as a square image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsCropFaces",
            display_name="Crop Faces",
            category=CATEGORY,
            description="Cuts the tracked square out of each image, turned upright with the head, for nodes that work on faces. "
            "Paste Faces puts the crops back. There is a crop for every frame; where the face is absent, the mask is black and "
            "nothing will be pasted.",
            inputs=[
                io.Image.Input("images", tooltip="The images that were tracked."),
                Track.Input("track", tooltip="From Track Face, of these images or of the video they come from."),
                io.Int.Input(
                    "size",
                    default=384,
                    min=64,
                    max=2048,
                    step=8,
                    optional=True,
                    tooltip="Side of the square crops in pixels. For Edit Lip Latents the editor's: bundled 384, "
                    "bundled-fast 256. For other nodes: higher = finer; above the face's size in the images (see Preview "
                    "Track) nothing is gained.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="crops", tooltip="One square for each image."),
                io.Mask.Output(display_name="mask", tooltip="White where the face is there, black where it is absent."),
            ],
        )

    @classmethod
    def execute(cls, images: Tensor, track: FaceTrack, size=384) -> io.NodeOutput:
        pictures = bridge.pictures_of(images)
        check_track_of_images(track, pictures)
        with progress.running("Cutting crops", len(pictures)) as run:
            crops = cut_images(pictures, track.squares, size, run.progress, run.show_image)
        mask = torch.from_numpy(track.present).float()[:, None, None].repeat(1, size, size)
        return io.NodeOutput(bridge.images_of(crops), mask)


class PasteFaces(io.ComfyNode):
    """Crops back into the images they were cut from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsPasteFaces",
            display_name="Paste Faces",
            category=CATEGORY,
            description="Blends crops of Crop Faces, edited by other nodes, back into their images, turned as the head is. "
            "Pixels outside the mask and frames without the face stay exactly as they are. Crops may come back in another size.",
            inputs=[
                io.Image.Input("images", tooltip="The images that the crops were cut from."),
                io.Image.Input("crops", tooltip="The edited crops, one for each image, of any size."),
                Track.Input("track", tooltip="The track that the crops were cut with."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where to paste, drawn on the crops: white = the crop, black = the image. One mask, or one for each "
                    "crop. The soft border is applied on top.",
                ),
                io.Float.Input(
                    "feather",
                    default=16.0,
                    min=0.0,
                    max=512.0,
                    step=1.0,
                    optional=True,
                    tooltip="Width in pixels of the crop over which the paste fades out at its border. Higher = softer, 0 = hard "
                    "edge.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The images with the crops in them.")],
        )

    @classmethod
    def execute(cls, images: Tensor, crops: Tensor, track: FaceTrack, mask=None, feather=16.0) -> io.NodeOutput:
        pictures, faces = bridge.pictures_of(images), bridge.pictures_of(crops)
        check_track_of_images(track, pictures)
        alpha = paste_alpha(track, faces, feather, mask)
        with progress.running("Pasting crops", len(pictures)) as run:
            pasted = paste_images(pictures, track.squares, faces, alpha, run.progress, run.show_image)
        return io.NodeOutput(bridge.images_of(pasted))


NODES = [TrackFace, PreviewTrack, CropFaces, PasteFaces]


def _wanted_face(face: str, index: int, reference: Tensor | None, detector: Any) -> Which:
    """The combo's word as the core means it."""
    if face == "index":
        return index
    if face != "reference":
        return face
    if reference is None:
        raise FlashLipsError(
            "Face 'reference' needs a picture of the person; connect one to 'reference', or choose another face."
        )
    return reference_face((reference[0, ..., :3].float().cpu().clamp(0, 1) * 255).round().byte().numpy(), detector)


@contextmanager
def _clip(run: progress.Run, video: Any, images: Tensor | None, fps: float) -> Iterator[tuple[Iterator[Frame], ClipInfo]]:
    """Frames and description of a VIDEO or of IMAGEs."""
    bridge.check_one_clip(video, images)
    if images is not None:
        pictures = bridge.pictures_of(images)
        yield as_frames(pictures), images_info(pictures, frame_rate(fps))
        return
    with bridge.video_source(video, run) as path:
        info = probe(path)
        with closing(prefetch(read_frames(path), DECODED_AHEAD)) as frames:
            yield frames, info
