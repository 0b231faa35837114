"""The shipped workflows, each described as a sketch; build_workflows.py writes them as files."""

from __future__ import annotations

import json
from collections.abc import Callable

from sketch import Node, Sketch

FACE, VOICE, PAIR = (f"flashlips-demo/{name}" for name in ("face.mp4", "voice.wav", "pair.mp4"))
CONSENT = "Dub people only with their consent, and say that the video was changed wherever you show it."


def dub_a_video(g: Sketch) -> None:
    with g.group(
        "1. A video and a voice",
        "Press Run: these two come with FlashLips, a rendered head and a synthetic voice. For your own, type a path, or drop a "
        "video and a sound file on the canvas and connect what appears to Lip Sync.",
        "in",
    ):
        video = g.node("FlashLipsLoadVideo", "Video", path=FACE)
        voice = g.node("FlashLipsLoadVideo", "Voice", path=VOICE)
    with g.group("2. Lip sync", "The person in the video speaks the voice. Each run is another take: its seed changes.", "edit"):
        dubbed = g.node("FlashLipsLipSync", video=video, audio=voice.out("audio"), control_after_generate="randomize")
    with g.group("3. The result", f"It is saved in ComfyUI's output folder and plays here.\n{CONSENT}", "out"):
        g.node("FlashLipsSaveVideo", video=dubbed, filename_prefix="video/dubbed")
    with g.group("4. Before and after", "Drag the line, step with the arrow keys, press Mouth to look closely.", "out"):
        g.node("FlashLipsCompareVideo", before=video, after=dubbed)


def talking_photo(g: Sketch) -> None:
    with g.group(
        "1. A picture and a voice",
        "Here the picture is a frame of a clip. For your own: delete these three nodes and connect Load Image to Create Video. "
        "One person, looking at the camera, lips visible.",
        "in",
    ):
        clip = g.node("FlashLipsLoadVideo", "A clip", path=FACE)
        parts = g.node("GetVideoComponents", video=clip)
        picture = g.node("ImageFromBatch", "One frame of it", image=parts, batch_index=0, length=1)
        voice = g.node("FlashLipsLoadVideo", "Voice", path=VOICE)
    with g.group("2. Lip sync", "The still is held for as long as the voice speaks. Only the mouth moves, not the head.", "edit"):
        still = g.node("CreateVideo", "A video of one frame", images=picture, fps=25.0)
        dubbed = g.node("FlashLipsLipSync", video=still, audio=voice.out("audio"), control_after_generate="randomize")
    with g.group("3. The result", f"It is saved in ComfyUI's output folder and plays here.\n{CONSENT}", "out"):
        g.node("FlashLipsSaveVideo", video=dubbed, filename_prefix="video/talking_photo")


def full_pipeline(g: Sketch) -> None:
    with g.group(
        "1. The face",
        "Track Face finds the face in every frame, once per clip: later runs with another voice or seed reuse it.",
        "face",
    ):
        video = g.node("FlashLipsLoadVideo", "Video", path=FACE)
        lip_encoder = g.node("FlashLipsLoadLipEncoder")
        g.column()
        track = g.node("FlashLipsTrackFace", video=video)
    with g.group(
        "2. The voice", "An audio encoder listens to the voice. Each pose model knows one audio encoder.", "voice", is_below=True
    ):
        voice = g.node("FlashLipsLoadVideo", "Voice", path=VOICE)
        listener = g.node("FlashLipsLoadAudioEncoder")
        g.column()
        features = g.node("FlashLipsEncodeAudio", audio_encoder=listener, audio=voice.out("audio"))
        pose_model = g.node("FlashLipsLoadPoseModel")
    with g.group("3. The person's lips", "What the lips do in the clip: how this person moves them.", "face"):
        own = g.node("FlashLipsEncodePoses", "Encode the person's poses", lip_encoder=lip_encoder, video=video, track=track)
    with g.group("4. The lip motion", "Twelve numbers per frame say what the mouth does.", "poses", is_below=True):
        sampled = g.node("FlashLipsSamplePoses", pose_model=pose_model, features=features, source_poses=own)
    with g.group("6. The edit", "The editor gives the face in each frame its new mouth; the rest of the frame stays.", "edit"):
        editor = g.node("FlashLipsLoadEditor")
        codec = g.node("FlashLipsLoadCodec")
        g.column()
        edit = {"video": video, "track": track, "editor": editor, "vae": codec, "lip_encoder": lip_encoder}
        dubbed = g.node("FlashLipsLipSyncVideo", **edit, audio=voice.out("audio"))
    with g.group(
        "5. Shaping it",
        "Edit Lip Poses changes the motion before it is applied: gains of 1.15 make up for what the bundled editor holds back.",
        "poses",
        is_below=True,
    ):
        further = {"expression_gain": 1.15, "mouth_gain": 1.15}
        poses = g.node("FlashLipsEditPoses", poses=sampled, features=features, audio=voice.out("audio"), **further)
        g.column()
        g.node("FlashLipsPreviewPoses", poses=poses, audio=voice.out("audio"))
    dubbed.sources["poses"] = (poses, 0)
    with g.group("7. The result", CONSENT, "out"):
        g.node("FlashLipsSaveVideo", video=dubbed, filename_prefix="video/full_pipeline")
    with g.group("8. Before and after", "With the track the zoom follows the mouth.", "out", is_below=True):
        g.node("FlashLipsCompareVideo", before=video, after=dubbed, track=track)


def voice_to_poses(
    g: Sketch, listener: Node | None = None, pose_model: Node | None = None, **settings: object
) -> tuple[Node, Node]:
    """The columns that make lip poses of the bundled voice, with the loaders that are not given. Returns voice and poses."""
    voice = g.node("FlashLipsLoadVideo", "Voice", path=VOICE)
    listener = listener or g.node("FlashLipsLoadAudioEncoder")
    pose_model = pose_model or g.node("FlashLipsLoadPoseModel")
    g.column()
    features = g.node("FlashLipsEncodeAudio", audio_encoder=listener, audio=voice.out("audio"))
    return voice, g.node("FlashLipsSamplePoses", pose_model=pose_model, features=features, **settings)


def two_backbones(g: Sketch) -> None:
    with g.group("1. One clip", "Its frames, all in memory: for short clips.", "face"):
        video = g.node("FlashLipsLoadVideo", "Video", path=FACE)
        frames = g.node("GetVideoComponents", video=video)
        g.column()
        track = g.node("FlashLipsTrackFace", images=frames, fps=frames.out("fps"))
    with g.group("2. One voice", "Both editors get the same face and the same lip motion.", "poses", is_below=True):
        voice, poses = voice_to_poses(g)
    with g.group(
        "3. Two backbones",
        "A is a U-Net, B a Transformer that learnt from it; both work on 256 px crops and share a codec. To compare others, put "
        "their files into models/flashlips, press R, and choose them here, with the codec they were trained with.",
        "edit",
    ):
        names = {"A": "bundled-fast", "B": "bundled-transformer"}
        editors = [g.node("FlashLipsLoadEditor", f"Editor {half}", name=name) for half, name in names.items()]
        codec = g.node("FlashLipsLoadCodec", name="bundled-fast")
        g.column()
        parts = {"images": frames, "track": track, "poses": poses, "vae": codec}
        edited = [
            g.node("FlashLipsLipSyncImages", f"Lip-Sync Images {name}", editor=editor, **parts)
            for name, editor in zip(names, editors, strict=True)
        ]
    with g.group("4. Side by side", f"A is left, B is right.\n{CONSENT}", "out"):
        joined = g.node("ImageStitch", image1=edited[0], image2=edited[1])
        both = g.node("CreateVideo", images=joined, fps=frames.out("fps"), audio=voice.out("audio"))
        g.node("FlashLipsSaveVideo", video=both, filename_prefix="video/swap_backbones")


def another_performance(g: Sketch) -> None:
    with g.group(
        "1. The performance",
        "Somebody speaks. The lip encoder reads what the mouth does, frame by frame; no audio model is used.",
        "poses",
    ):
        acted = g.node("FlashLipsLoadVideo", "Performance", path=FACE)
        lip_encoder = g.node("FlashLipsLoadLipEncoder")
        g.column()
        poses = g.node("FlashLipsEncodePoses", lip_encoder=lip_encoder, video=acted)
    with g.group("2. Who shall speak", "Here: the person on the right of a clip with two people.", "face", is_below=True):
        video = g.node("FlashLipsLoadVideo", "Video", path=PAIR)
        g.column()
        track = g.node("FlashLipsTrackFace", video=video, face="right")
    with g.group("3. The edit", "The face in the video moves its lips as the performer does, with their sound.", "edit"):
        editor, codec = g.node("FlashLipsLoadEditor"), g.node("FlashLipsLoadCodec")
        g.column()
        dubbed = g.node(
            "FlashLipsLipSyncVideo", video=video, track=track, poses=poses, editor=editor, vae=codec, lip_encoder=lip_encoder,
            audio=acted.out("audio"),
        )  # fmt: skip
    with g.group("The motion", "The twelve numbers of each frame, and how far the mouth opens.", "poses", is_below=True):
        g.node("FlashLipsPreviewPoses", poses=poses, audio=acted.out("audio"))
    with g.group("4. The result", CONSENT, "out"):
        g.node("FlashLipsSaveVideo", video=dubbed, filename_prefix="video/poses_from_video")


def two_speakers(g: Sketch) -> None:
    with g.group(
        "1. Who says what",
        "One recording, cut at 2.9 s: the left person says the first part, the right one the rest. With a recording per person, "
        "silent while the other speaks, connect these to the two Encode Audio nodes and delete the cutting.",
        "voice",
    ):
        voice = g.node("FlashLipsLoadVideo", "Voice", path=VOICE)
        silence = g.node("EmptyAudio", "Silence before the second part", duration=2.9, sample_rate=22_050, channels=1)
        g.column()
        first = g.node("TrimAudioDuration", "First part", audio=voice.out("audio"), start_index=0.0, duration=2.9)
        rest = g.node("TrimAudioDuration", "Second part", audio=voice.out("audio"), start_index=2.9, duration=60.0)
    with g.group("3. The left face", "One track for each person: the left face, and the right one.", "face", is_below=True):
        video = g.node("FlashLipsLoadVideo", "Video", path=PAIR)
        g.column()
        left = g.node("FlashLipsTrackFace", "Track the left face", video=video, face="left")
    with g.group("2. Two lip motions", "Between words and while the other speaks, the lips come to rest.", "poses"):
        delayed = g.node("AudioConcat", audio1=silence, audio2=rest, direction="after")
        listener, pose_model = g.node("FlashLipsLoadAudioEncoder"), g.node("FlashLipsLoadPoseModel")
        g.column()
        heard = [
            g.node("FlashLipsEncodeAudio", f"Encode Audio, {side}", audio_encoder=listener, audio=sound)
            for side, sound in (("left", first), ("right", delayed))
        ]
        g.column()
        poses = [
            g.node("FlashLipsSamplePoses", f"Sample Lip Poses, {side}", pose_model=pose_model, features=features)
            for side, features in zip(("left", "right"), heard, strict=True)
        ]
    with g.group("4. The right face, and the editor", "Both edits use the same editor and codec.", "face", is_below=True):
        right = g.node("FlashLipsTrackFace", "Track the right face", video=video, face="right")
        g.column()
        parts = {"editor": g.node("FlashLipsLoadEditor"), "vae": g.node("FlashLipsLoadCodec")}
    with g.group(
        "5. Two edits, chained", "The second edit starts from the video that the first one made. The sound comes last.", "edit"
    ):
        once = g.node("FlashLipsLipSyncVideo", "Lip-Sync Video, left", video=video, track=left, poses=poses[0], **parts)
        g.column()
        sides = {"video": once, "track": right, "poses": poses[1], "audio": voice.out("audio")}
        twice = g.node("FlashLipsLipSyncVideo", "Lip-Sync Video, right", **sides, **parts)
    with g.group("6. The result", CONSENT, "out"):
        g.node("FlashLipsSaveVideo", video=twice, filename_prefix="video/two_speakers")


def shape_the_lips(g: Sketch) -> None:
    with g.group("1. Two takes", "The same voice, two seeds: two takes of the lip motion.", "poses"):
        voice = g.node("FlashLipsLoadVideo", "Voice", path=VOICE)
        listener, pose_model = g.node("FlashLipsLoadAudioEncoder"), g.node("FlashLipsLoadPoseModel")
        features = g.node("FlashLipsEncodeAudio", audio_encoder=listener, audio=voice.out("audio"))
        g.column()
        takes = [
            g.node("FlashLipsSamplePoses", f"Take {seed}", pose_model=pose_model, features=features, seed=seed, temperature=0.6)
            for seed in (1, 2)
        ]
    with g.group(
        "2. Edited",
        "Sliders act on the whole clip: here half of take 2, a stronger mouth, some smoothing. Operations act on ranges: here "
        "the lips are held from frame 70 to 76. In the preview, take 1 is the thin line.",
        "edit",
    ):
        hold = json.dumps([{"op": "hold", "start": 70, "stop": 76, "fade": 3}])
        edited = g.node(
            "FlashLipsEditPoses", poses=takes[0], other=takes[1], features=features, mix=0.5, mouth_gain=1.3, smoothing_ms=40.0,
            operations=hold, audio=voice.out("audio"),
        )  # fmt: skip
        g.node("FlashLipsPreviewPoses", poses=edited, other=takes[0], audio=voice.out("audio"))
    with g.group("3. Applied", "Track, editor and codec, as in the full pipeline.", "face"):
        video = g.node("FlashLipsLoadVideo", "Video", path=FACE)
        editor, codec = g.node("FlashLipsLoadEditor"), g.node("FlashLipsLoadCodec")
        track = g.node("FlashLipsTrackFace", video=video)
        g.column()
        edit = {"video": video, "track": track, "poses": edited, "editor": editor, "vae": codec}
        dubbed = g.node("FlashLipsLipSyncVideo", **edit, audio=voice.out("audio"))
    with g.group("4. The result", CONSENT, "out"):
        g.node("FlashLipsSaveVideo", video=dubbed, filename_prefix="video/edit_poses")


def edit_latents(g: Sketch) -> None:
    with g.group(
        "1. Frames and face crops",
        "Two seconds of frames, and the square around the face cut out of each. All of it is held in memory: for short clips.",
        "face",
    ):
        video = g.node("FlashLipsLoadVideo", "Video", path=FACE)
        parts = g.node("GetVideoComponents", video=video)
        frames = g.node("ImageFromBatch", "The first 50 frames", image=parts, batch_index=0, length=50)
        g.column()
        track = g.node("FlashLipsTrackFace", images=frames, fps=parts.out("fps"))
    with g.group("2. Lip motion", "One pose per frame, at the clip's rate.", "poses", is_below=True):
        voice, poses = voice_to_poses(g, fps=parts.out("fps"))
    with g.group(
        "3. Crops and latents",
        "ComfyUI's own VAE Encode and VAE Decode stand around the editor.",
        "edit",
    ):
        crops = g.node("FlashLipsCropFaces", images=frames, track=track)
        codec = g.node("FlashLipsLoadCodec")
        g.column()
        shown = g.node("ImageFromBatch", "Twelve crops as references", image=crops, batch_index=0, length=12)
        target = g.node("VAEEncode", "Encode the crops", pixels=crops, vae=codec)
        references = g.node("VAEEncode", "Encode the references", pixels=shown, vae=codec)
        editor = g.node("FlashLipsLoadEditor")
    with g.group(
        "5. Where to paste",
        "A soft square around mouth and chin, on a 384 px crop. Without a mask the whole crop is pasted, and the codec's loss "
        "shows in eyes and hair.",
        "face",
        is_below=True,
    ):
        square = g.node("SolidMask", "Mouth and chin", value=1.0, width=216, height=216)
        nowhere = g.node("SolidMask", "Nothing else", value=0.0, width=384, height=384)
        g.column()
        soft = g.node("FeatherMask", mask=square, left=54, top=54, right=54, bottom=54)
        mask = g.node("MaskComposite", destination=nowhere, source=soft, x=84, y=162, operation="add")
    with g.group("4. The editor, bare", "Put other latent nodes between, or lower 'strength'.", "edit"):
        edited = g.node("FlashLipsEditLatents", editor=editor, target=target, references=references, poses=poses)
        g.column()
        decoded = g.node("VAEDecode", samples=edited, vae=codec)
        pasted = g.node("FlashLipsPasteFaces", images=frames, crops=decoded, track=track)
    pasted.sources["mask"] = (mask, 0)
    with g.group("6. Back into the frames", f"The edited crops are blended into their frames.\n{CONSENT}", "out"):
        made = g.node("CreateVideo", images=pasted, fps=parts.out("fps"), audio=voice.out("audio"))
        g.node("FlashLipsSaveVideo", video=made, filename_prefix="video/edit_latents")


def finetune_an_editor(g: Sketch) -> None:
    with g.group(
        "1. A clip of one person",
        "For a good result: 20 s to 5 min of the person talking, seen from the front, in the light of the video that will be "
        "dubbed. Only with that person's consent.",
        "face",
    ):
        video = g.node("FlashLipsLoadVideo", "Video", path=FACE)
        codec, lip_encoder = g.node("FlashLipsLoadCodec"), g.node("FlashLipsLoadLipEncoder")
        editor = g.node("FlashLipsLoadEditor", "The editor to start from")
        g.column()
        track = g.node("FlashLipsTrackFace", video=video)
    with g.group(
        "4. A voice",
        "Lip motion for the voice that the person shall speak.",
        "poses",
        is_below=True,
    ):
        voice, poses = voice_to_poses(g)
    with g.group(
        "2. Training frames",
        "Cuts and encodes the face; the clip's end is held out to measure by. The bundled head talks for 5 s, so 'shortest' "
        "(advanced) is lowered here: put it back to 10 with your own clip.",
        "face",
    ):
        parts = {"vae": codec, "lip_encoder": lip_encoder, "track": track, "editor": editor}
        dataset = g.node("FlashLipsPrepareDataset", video=video, **parts, shortest=4.0)
    with g.group(
        "3. The training",
        "First the codec's decoder learns the face, then the editor learns to draw through it. Both are saved as 'name' in "
        "models/flashlips: press R, and the loaders list them; use them together. 50 steps show how it works; with your own clip "
        "take 400. Cancel keeps the best so far; Run goes on. For another clip choose another name.",
        "edit",
    ):
        face = g.node("FlashLipsFineTuneCodec", vae=codec, dataset=dataset, name="my_codec", steps=50)
        g.column()
        tuned = g.node(
            "FlashLipsFineTuneLipEditor", editor=editor, dataset=dataset, vae=face, lip_encoder=lip_encoder, name="my_editor",
            steps=50,
        )  # fmt: skip
    with g.group(
        "What it learnt",
        "The curve is the likeness of held-out lips: if it only falls, lower 'learning_rate' (advanced); what is kept then is "
        "the editor you started from.",
        "edit",
    ):
        g.node("PreviewImage", "The curve", images=tuned.out("curve"))
        g.node("PreviewImage", "Before and after", images=tuned.out("before_after"))
    with g.group(
        "5. Dubbed with it",
        "The editor goes where Load Lip Editor would be, the codec where Load Codec would be. Any other clip of the same person "
        "will do, with a track of its own.",
        "edit",
        is_below=True,
    ):
        dubbed = g.node(
            "FlashLipsLipSyncVideo", video=video, track=track, poses=poses, editor=tuned.out("editor"), vae=face,
            lip_encoder=lip_encoder, audio=voice.out("audio"),
        )  # fmt: skip
    with g.group("6. The result", CONSENT, "out"):
        g.node("FlashLipsSaveVideo", video=dubbed, filename_prefix="video/finetune_on_clip")


def finetune_speech(g: Sketch) -> None:
    with g.group(
        "1. A clip of one person",
        "With sound. The pose model learns how far and how softly this person moves the lips. Only with that person's consent.",
        "face",
    ):
        video = g.node("FlashLipsLoadVideo", "Video", path=FACE)
        lip_encoder = g.node("FlashLipsLoadLipEncoder")
        g.column()
        track = g.node("FlashLipsTrackFace", video=video)
    with g.group("What it hears", "The clip's own sound.", "voice", is_below=True):
        listener = g.node("FlashLipsLoadAudioEncoder")
        g.column()
        own = g.node("FlashLipsEncodeAudio", "The clip's own sound", audio_encoder=listener, audio=video.out("audio"))
        pose_model = g.node("FlashLipsLoadPoseModel", "The pose model to start from")
    with g.group("2. What the lips do", "Read from the clip, one pose per frame.", "poses"):
        seen = g.node("FlashLipsEncodePoses", lip_encoder=lip_encoder, video=video, track=track)
    with g.group(
        "4. A voice",
        "What the person shall say.",
        "voice",
        is_below=True,
    ):
        voice = g.node("FlashLipsLoadVideo", "Voice", path=VOICE)
        features = g.node("FlashLipsEncodeAudio", audio_encoder=listener, audio=voice.out("audio"))
    with g.group(
        "3. The training",
        "Saved as 'name' in models/flashlips: press R, and Load Pose Model lists it. 'shortest' (advanced) is lowered for the "
        "bundled 5 s: put it back to 10 with your own clip, and take 400 steps.",
        "edit",
    ):
        lessons = {"pose_model": pose_model, "features": own, "poses": seen}
        style = g.node("FlashLipsFineTunePoseModel", **lessons, name="my_style", steps=50, shortest=4.0)
        g.column()
        g.node("PreviewImage", "Its curve", images=style.out("curve"))
    with g.group("5. Lip motion, as this person speaks", "The tuned pose model goes where Load Pose Model would be.", "poses",
                 is_below=True):  # fmt: skip
        poses = g.node("FlashLipsSamplePoses", pose_model=style, features=features, source_poses=seen)
        g.column()
        editor, codec = g.node("FlashLipsLoadEditor"), g.node("FlashLipsLoadCodec")
    with g.group("6. The edit", "As in the full pipeline.", "edit"):
        edit = {"video": video, "track": track, "poses": poses, "editor": editor, "vae": codec, "lip_encoder": lip_encoder}
        dubbed = g.node("FlashLipsLipSyncVideo", **edit, audio=voice.out("audio"))
    with g.group("7. The result", CONSENT, "out"):
        g.node("FlashLipsSaveVideo", video=dubbed, filename_prefix="video/finetune_speech")


# Files' names are what people read in the template browser.
DESCRIPTIONS: dict[str, Callable[[Sketch], None]] = {
    "1 Dub a video": dub_a_video,
    "2 Talking photo": talking_photo,
    "3 Two speakers": two_speakers,
    "4 Lips from another performance": another_performance,
    "5 Full pipeline": full_pipeline,
    "6 Shape the lips": shape_the_lips,
    "7 Two backbones side by side": two_backbones,
    "8 Edit latents": edit_latents,
    "9 Fine-tune an editor": finetune_an_editor,
    "9 Fine-tune a way of speaking": finetune_speech,
}
