"""FlashLips: the mouth of a video follows another voice. The library is ``flashlips_core``."""

import logging

try:
    import comfy_api.latest  # noqa: F401
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "comfy_api":
        raise
else:
    logging.getLogger(__name__).warning("This version of FlashLips has no ComfyUI nodes; use it as: python -m flashlips_core --help")
