"""The clip that the tests of nodes share."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

DEMO = Path(__file__).resolve().parents[2] / "flashlips_core" / "demo" / "face.mp4"
SIDE = 192  # of the demo's face in these clips
NUM_SEEN, NUM_EMPTY = 10, 4


def face_clip(path: Path, kinds: str = "f", num_empty: int = NUM_EMPTY) -> Path:
    """The demo's face at 25 per second, then frames of plain grey. ``kinds``: a picture each, f face, t tinted face, e empty."""
    with av.open(str(DEMO)) as source, av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=25, options={"crf": "10"})
        video.width, video.height, video.pix_fmt = SIDE * len(kinds), SIDE, "yuv420p"
        faces = [f.to_ndarray(width=SIDE, height=SIDE, format="rgb24") for f, _ in zip(source.decode(video=0), range(NUM_SEEN))]  # noqa: B905
        empty = np.full((SIDE, SIDE, 3), 110, np.uint8)
        for face in [*faces, *[empty] * num_empty]:
            looks = {"f": face, "t": face[..., ::-1], "e": empty}
            picture = np.concatenate([looks[kind] for kind in kinds], 1)
            output.mux(video.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        output.mux(video.encode())
    return path
