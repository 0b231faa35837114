"""Other people's voices out of one recording, so that a pose model learns what is said and not who says it."""

from __future__ import annotations

import av
import numpy as np

from ...types import SAMPLE_RATE

LAYOUT = "mono"


def shifted_voice(samples: np.ndarray, semitones: float) -> np.ndarray:
    """Pitch and formants moved together, as a shorter (above 0) or longer throat would; the timing stays.

    Args:
        samples: (N,) float32, 16 kHz.
    Returns: (N,) float32, 16 kHz.
    """
    if semitones == 0 or not len(samples):
        return samples
    factor = 2 ** (semitones / 12)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None], np.float32), format="fltp", layout=LAYOUT)
    frame.sample_rate, frame.pts = SAMPLE_RATE, 0
    graph, sink = _graph(factor)
    graph.push(frame)
    graph.push(None)
    parts = []
    while True:
        try:
            parts.append(sink.pull().to_ndarray()[0])
        except (av.BlockingIOError, av.EOFError):
            break
    made = np.concatenate(parts)[: len(samples)]
    return np.pad(made, (0, len(samples) - len(made))).astype(np.float32)


def _graph(factor: float) -> tuple[av.filter.Graph, av.filter.context.FilterContext]:
    """FFmpeg's filters: play it faster by ``factor``, which moves everything up, then slow it down again, which moves nothing."""
    graph = av.filter.Graph()
    chain = [
        graph.add_abuffer(format="fltp", sample_rate=SAMPLE_RATE, layout=LAYOUT, time_base=f"1/{SAMPLE_RATE}"),
        graph.add("asetrate", str(round(SAMPLE_RATE * factor))),
        graph.add("atempo", f"{1 / factor:.6f}"),
        graph.add("aresample", str(SAMPLE_RATE)),
        graph.add("aformat", f"sample_fmts=fltp:channel_layouts={LAYOUT}"),
        graph.add("abuffersink"),
    ]
    for first, second in zip(chain, chain[1:], strict=False):
        first.link_to(second)
    graph.configure()
    return graph, chain[-1]
