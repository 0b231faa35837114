"""The nodes: each is a schema and one call into the core; only the two bridges and progress.py touch ComfyUI's inside."""

from __future__ import annotations

import importlib

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from ..flashlips_core.types import FlashLipsError
from . import bridge_models

FILES = ("edit", "latents", "load", "media", "compare", "track", "poses", "score", "train")


class FlashLipsExtension(ComfyExtension):
    """The pack, as ComfyUI sees it."""

    @override
    async def on_load(self) -> None:
        FlashLipsError.__module__ = "builtins"  # else ComfyUI's error box begins with a path instead of the sentence
        bridge_models.register_folder()

    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for name in FILES for node in importlib.import_module(f".{name}", __name__).NODES]


async def comfy_entrypoint() -> FlashLipsExtension:
    """What ComfyUI looks for."""
    return FlashLipsExtension()
