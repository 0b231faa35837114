"""A pack of two nodes that test_comfy_host.py shows the harness with."""

from __future__ import annotations

import dataclasses
import time

import comfy.utils
import torch
from comfy_api.latest import ComfyExtension, io

Track = io.Custom("TOY_TRACK")


@dataclasses.dataclass(frozen=True)
class ToyTrack:
    """A value of a type that only this pack knows."""

    means: torch.Tensor  # (T,)
    name: str


class ToyTrackFrames(io.ComfyNode):
    """Fails above 4 frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema("ToyTrackFrames", inputs=[io.Image.Input("images")], outputs=[Track.Output()])

    @classmethod
    def execute(cls, images: torch.Tensor) -> io.NodeOutput:
        if images.shape[0] > 4:
            raise ValueError("At most 4 frames; pick fewer.")
        return io.NodeOutput(ToyTrack(images.mean((1, 2, 3)), "toy"))


class ToyWait(io.ComfyNode):
    """Takes a while and shows its progress."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema("ToyWait", inputs=[io.Int.Input("steps", default=3, max=10_000)], outputs=[], is_output_node=True)

    @classmethod
    def execute(cls, steps: int) -> io.NodeOutput:
        bar = comfy.utils.ProgressBar(steps)
        for _ in range(steps):
            bar.update(1)
            time.sleep(0.02)
        return io.NodeOutput(ui={"toy": [steps]})


class Toys(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [ToyTrackFrames, ToyWait]


async def comfy_entrypoint() -> Toys:
    """Called by ComfyUI."""
    return Toys()
