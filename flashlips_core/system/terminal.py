"""A command's surroundings: terminals that cannot write every letter or are gone, and signals that ask it to stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP


class StopAsked(KeyboardInterrupt):
    """A signal asked to stop."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number  # exit code, as shells have it


def exit_code(stop: KeyboardInterrupt) -> int:
    """The exit code of a command that was stopped."""
    return getattr(stop, "code", 128 + signal.SIGINT)


@contextmanager
def stoppable(is_last: bool = False) -> Iterator[None]:
    """Let SIGTERM and SIGHUP stop the work as Ctrl-C does: by a KeyboardInterrupt, so that nothing half-written is left.

    Only the first signal counts; more of them would stop the tidying up. One that the caller ignores (``nohup``) stays ignored.

    Args:
        is_last: nothing but the end of the process comes after this; signals are then ignored, if one has asked to stop.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal is_asked
        if not is_asked:
            is_asked = True
            raise StopAsked(number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number, handler in before.items() if handler in (signal.SIG_DFL, signal.default_int_handler)]
    for number in taken:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_IGN if is_asked and is_last else before[number])


def steady_streams() -> None:
    """Make standard output and errors safe to write to, whatever they are.

    Closed ones go nowhere: their numbers would else be given to the next file, and libraries would write messages into it.
    Letters that a terminal does not have are written as escapes.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        with suppress(AttributeError, ValueError):  # a notebook's or a test's own
            getattr(sys, name).reconfigure(errors="backslashreplace")


def say(stream: TextIO, text: str) -> None:
    """Write a line; a reader who is gone (a broken pipe) is not an error of the work."""
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        with suppress(OSError, ValueError, AttributeError):  # else Python complains again when it flushes at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
