"""What a node shows while it works: its bar, a preview picture, and a line of text that says what is being done.

With the two bridges the only file that touches comfy.* and ComfyUI's server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.model_management as management
import comfy.utils
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..flashlips_core.compose import whole_picture
from ..flashlips_core.pixels import to_bytes
from ..flashlips_core.types import FlashLipsError, Frame
from . import words

SHOWN_EVERY_S = 0.5  # a preview picture, and a new text, at most this often
PREVIEW_PX = 512  # its longest side
Picture = Frame | Tensor | Callable[[], Tensor]
"""For a preview: a frame, an image (3, H, W) in [-1, 1], or what makes one when it is wanted."""


class Run:
    """The progress of one node: its bar, its preview picture, its text, and the place where Cancel takes effect."""

    def __init__(self, total: int, stage: str, is_shown: bool) -> None:
        self.bar = comfy.utils.ProgressBar(total)
        self.is_shown = is_shown
        self.frame: Picture | None = None
        self.shown_at = self.said_at = 0.0
        self.notices: list[str] = []
        self.done = 0  # of the whole bar
        self.kept = ""  # what Cancel leaves
        self.stage(stage)

    def beat(self) -> None:
        """Stop here if the user has pressed Cancel (a BaseException)."""
        management.throw_exception_if_processing_interrupted()

    def stage(self, name: str, count: int = 0) -> None:
        """Say what begins, and how many frames or steps it has; 0 = as many as :meth:`progress` says."""
        self.name, self.count, self.begun, self.began_at = name, count, self.done, time.monotonic()
        self._say(words.status(name, 0, count, 0.0))

    def notice(self, text: str) -> None:
        """Something that the user should know, below the line of text until the node runs again; "" is nothing."""
        if text and text not in self.notices:
            self.notices.append(text)

    def finish(self, line: str) -> None:
        """What was done, in one line; stays on the node."""
        self._say(line)

    def show(self, picture: Picture) -> None:
        """Remember a picture for the preview. Costs nothing."""
        if self.is_shown:
            self.frame = picture

    def show_image(self, picture: Tensor) -> None:
        """The same of one of ComfyUI's images, (3, H, W) in [0, 1]."""
        self.show(lambda: picture * 2 - 1)

    def progress(self, done: int, total: int) -> None:
        """Move the bar; now and then with the picture that was shown last, and a new text."""
        self.beat()
        preview, now = None, time.monotonic()
        if self.frame is not None and now - self.shown_at >= SHOWN_EVERY_S:
            preview, self.frame, self.shown_at = ("JPEG", _picture(self.frame), PREVIEW_PX), None, now
        self.bar.update_absolute(done, max(total, 1), preview)
        if done < self.done:  # another part of the work counts from its own start
            self.begun = 0
        self.done = done
        if now - self.said_at >= SHOWN_EVERY_S:
            count = self.count or total - self.begun
            self._say(words.status(self.name, done - self.begun, count, now - self.began_at))

    def _say(self, line: str) -> None:
        self.said_at = time.monotonic()
        say("\n".join([line, *self.notices]))


def say(text: str) -> None:
    """Text on the node that is executing, until it runs again."""
    place = get_executing_context()
    if place is not None:
        PromptServer.instance.send_progress_text(text, place.node_id, PromptServer.instance.client_id)


@contextmanager
def running(stage: str, total: int = 1, is_shown: bool = True) -> Iterator[Run]:
    """A node's long work; checks at once whether it is still wanted.

    Args:
        stage: What is done first, in words.
        is_shown: Whether pictures are shown meanwhile. Not where the node's result is a video of its own: ComfyUI's front end
            would take the last picture for it.
    """
    run = Run(total, stage, is_shown)
    run.beat()
    try:
        yield run
    except management.InterruptProcessingException:
        run.finish(f"Cancelled. {run.kept}".strip())
        raise
    except FlashLipsError as error:  # ComfyUI's own box says only that the node failed, until its details are opened
        run.finish(str(error))
        raise
    finally:
        run.frame = None


def _picture(picture: Picture) -> Image.Image:
    picture = picture() if callable(picture) else picture
    return Image.fromarray(to_bytes(whole_picture(picture, PREVIEW_PX) if isinstance(picture, Frame) else picture))
