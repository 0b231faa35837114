"""What differs between PyAV 14 and 19: how it counts time, and how it reads tags that are not UTF-8; and names of files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av

# Older versions are asked not to fail on such tags; from 19 on they keep the bytes, and may not be asked
READING = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}


def local(path: str | Path) -> str:
    """A file's name as FFmpeg takes it: without this, "Part 1: start.mp4" would be an address of the protocol "Part 1"."""
    return f"file:{path}"


class Rational(Protocol):
    """A Fraction, or PyAV 19's own numbers, which some of Python's arithmetic does not take."""

    numerator: int
    denominator: int


def fraction(value: Rational | None) -> Fraction:
    """A time base, frame rate or aspect ratio of PyAV's; 0 where it says nothing, which older versions tell by None."""
    return Fraction(value.numerator, value.denominator) if value else Fraction(0)
