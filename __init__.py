"""FlashLips: the mouth of a video follows another voice. ComfyUI loads the nodes from here; the library is ``flashlips_core``."""

try:
    import comfy_api.latest  # noqa: F401
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "comfy_api":
        raise  # a real fault must be seen
else:
    from .nodes import comfy_entrypoint  # noqa: F401

WEB_DIRECTORY = "./js"
