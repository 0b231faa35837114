"""Film the bundled clip of two people: the head of face.mp4 beside another who listens, as in a video call. Run by hand.

python tests/comfy/make_pair.py --mesh ict_facekit_f16.npz --out flashlips_core/demo/pair.mp4
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from flashlips_core.bench.dubs import demo_clip
from flashlips_core.heads import clip
from flashlips_core.heads.mesh import load_head
from flashlips_core.media import load_audio, probe, read_frames, write_video

SECONDS = 4.48  # as long as voice.wav
SEED = 11  # of the listener's face
TONE, HAIR, CLOTH = np.array([150.0, 104, 76]), np.array([30.0, 24, 22]), (0.16, 0.03, 0.04)  # sRGB, sRGB, linear


def film_listener(mesh_file: str, out: Path) -> None:
    """A head with other colours that keeps its mouth shut."""
    plain_look = clip.demo_look
    clip.TONE, clip.HAIR = TONE, HAIR
    clip.demo_look = lambda painter, rng: replace(plain_look(painter, rng), cloth=CLOTH)
    clip.film(load_head(mesh_file), [("SIL", 0.0, SECONDS)], out, seconds=SECONDS, seed=SEED)


def join(left: Path, right: Path, out: Path) -> None:
    """Both pictures in one, with the sound of the left one."""
    info = probe(left)
    frames = islice(zip(read_frames(left), read_frames(right), strict=False), round(SECONDS * info.fps))
    pairs = (
        replace(a, planes=tuple(np.concatenate(planes, axis=1) for planes in zip(a.planes, b.planes, strict=True)))
        for a, b in frames
    )
    comment = {"comment": "ICT-FaceKit heads, rendered by FlashLips"}
    write_video(
        out, pairs, replace(info, width=2 * info.width), audio=load_audio(left), crf=21, preset="veryslow", metadata=comment
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mesh", required=True)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        listener = Path(folder) / "listener.mp4"
        film_listener(options.mesh, listener)
        join(demo_clip(), listener, options.out)


if __name__ == "__main__":
    main()
