"""What was measured of one clip, as a picture: a line per number, what could not be measured, and both mouths below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .poses import BACK, DIM, PANEL, TEXT

WIDTH, LINE, MARGIN = 1024, 26, 24  # pixels
VALUE_AT, NOTE_AT = 470, 560
MOST_CHARACTERS = 62  # of a note


def draw_score(
    title: str, lines: Sequence[tuple[str, str, str]], remarks: Sequence[str] = (), picture: np.ndarray | None = None
) -> np.ndarray:
    """The card, (H, W, 3) uint8 RGB.

    Args:
        lines: name, value and what to make of it, in the order in which they are shown.
        remarks: sentences below them.
        picture: (h, w, 3) uint8 below these, made as wide as the card.
    """
    from PIL import Image, ImageDraw, ImageFont

    remarks = [part for remark in remarks for part in _wrapped(remark, 120)]
    shown = None
    if picture is not None:
        inner = WIDTH - 2 * MARGIN
        shown = Image.fromarray(picture).resize((inner, max(1, round(picture.shape[0] * inner / picture.shape[1]))))
    height = 2 * MARGIN + 44 + LINE * (len(lines) + len(remarks)) + (0 if shown is None else shown.height + MARGIN)
    card = Image.new("RGB", (WIDTH, height), BACK)
    draw, top = ImageDraw.Draw(card), MARGIN
    draw.text((MARGIN, top), title, fill=TEXT, font=ImageFont.load_default(22))
    top += 44
    for row, (name, value, note) in enumerate(lines):
        if row % 2 == 0:
            draw.rectangle((MARGIN - 8, top - 4, WIDTH - MARGIN + 8, top + LINE - 5), fill=PANEL)
        draw.text((MARGIN, top), name, fill=TEXT, font=ImageFont.load_default(15))
        draw.text((VALUE_AT, top), value, fill=TEXT, font=ImageFont.load_default(15))
        note = note if len(note) <= MOST_CHARACTERS else f"{note[: MOST_CHARACTERS - 3]}..."
        draw.text((NOTE_AT, top + 1), note, fill=DIM, font=ImageFont.load_default(13))
        top += LINE
    for remark in remarks:
        draw.text((MARGIN, top + 4), remark, fill=DIM, font=ImageFont.load_default(13))
        top += LINE
    if shown is not None:
        card.paste(shown, (MARGIN, top + MARGIN // 2))
    return np.asarray(card)


def _wrapped(text: str, length: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, length) or [""]
