"""The 99 landmarks of a face: which of MediaPipe's points they are, what they are called, and where they lie on the mean head.

Every index of a landmark stands here. "Rows" count the 99; MediaPipe's own numbers go up to 478, see :func:`in_mesh`. Image left
comes before image right.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

# MediaPipe's numbers of outer lips, inner lips, face oval, eyes, irises, nose, brows
LANDMARKS = (
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409,
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 191, 80, 81, 82, 13, 312, 311, 310, 415,
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
    33, 133, 159, 145, 362, 263, 386, 374, 468, 473, 168, 6, 4, 1, 2, 98, 327, 70, 105, 107, 300, 334, 336,
)  # fmt: skip

LIPS, OVAL, EYES, NOSE, BROWS = slice(0, 40), slice(40, 76), slice(76, 86), slice(86, 93), slice(93, 99)
OUTER_LIPS, INNER_LIPS = slice(0, 20), slice(20, 40)
MOUTH_CORNERS = (0, 10)
OUTER_EYES = (76, 81)  # outer corners
EYE_CORNERS = ((76, 77), (81, 80))  # outer and inner corner of each eye
IRISES = (84, 85)
NOSE_TIP = 88
FIVE = (*IRISES, NOSE_TIP, *MOUTH_CORNERS)  # in the order of a detector's points
INNER_PAIRS = ((34, 24), (35, 25), (36, 26))  # facing points of the inner lips, above and below
MIDDLE_PAIR = INNER_PAIRS[1]
# Either outline begins at its image-left corner and runs below first: 11 points below, 9 above. Its mirror:
_OUTLINE_MIRROR = (*range(10, -1, -1), *range(19, 10, -1))
MIRROR_LIPS = np.array([start + i for start in (0, 20) for i in _OUTLINE_MIRROR])

# The mean head is computed here from ICT-FaceKit's (MIT, USC Institute for Creative Technologies): the vertices that MediaPipe's
# points lie on, each moved by what MediaPipe's landmarker sees beside its vertex in the mean over 144 renders of 16 people turned
# by up to 40 degrees, and made symmetric. Centimetres; x to image right, y up, z to the camera; the origin lies half-way between
# the corners of the closed mouth.
ICT_MOUTH = (0.000, -3.458, 10.098)  # where the origin lies in ICT-FaceKit's own space, cm

MEAN_SHAPE = (
    # outer lips
    (-2.51, 0.00, 0.00), (-2.29, -0.24, 0.23), (-1.95, -0.46, 0.61), (-1.44, -0.73, 1.05), (-0.75, -0.93, 1.39),
    (0.00, -0.99, 1.55), (0.75, -0.93, 1.39), (1.44, -0.73, 1.05), (1.95, -0.46, 0.61), (2.29, -0.24, 0.23),
    (2.51, 0.00, 0.00), (-2.31, 0.27, 0.38), (-1.96, 0.56, 0.80), (-1.46, 0.86, 1.22), (-0.72, 1.13, 1.65),
    (0.00, 1.02, 1.80), (0.72, 1.13, 1.65), (1.46, 0.86, 1.22), (1.96, 0.56, 0.80), (2.31, 0.27, 0.38),
    # inner lips
    (-2.24, 0.01, 0.04), (-1.86, 0.11, 0.23), (-1.52, 0.12, 0.52), (-1.11, 0.17, 0.89), (-0.59, 0.18, 1.20),
    (0.00, 0.17, 1.38), (0.59, 0.18, 1.20), (1.11, 0.17, 0.89), (1.52, 0.12, 0.52), (1.86, 0.11, 0.23),
    (2.24, 0.01, 0.04), (-1.88, 0.06, 0.26), (-1.52, 0.14, 0.56), (-1.08, 0.21, 0.89), (-0.57, 0.22, 1.20),
    (0.00, 0.21, 1.38), (0.57, 0.22, 1.20), (1.08, 0.21, 0.89), (1.52, 0.14, 0.56), (1.88, 0.06, 0.26),
    # face oval
    (0.00, 12.02, -0.09), (1.87, 12.00, -0.42), (3.51, 11.79, -1.13), (5.09, 11.29, -2.36), (6.26, 10.45, -3.62),
    (7.04, 9.27, -5.04), (7.45, 7.98, -6.25), (7.66, 6.35, -7.52), (7.27, 4.78, -6.16), (7.28, 3.25, -6.95),
    (7.09, 1.55, -7.52), (6.37, -0.15, -5.77), (5.78, -1.50, -5.01), (5.04, -2.41, -3.91), (4.08, -3.15, -2.75),
    (3.24, -3.61, -1.77), (2.33, -4.01, -0.81), (1.31, -4.25, -0.05), (0.00, -4.31, 0.21), (-1.31, -4.25, -0.05),
    (-2.33, -4.01, -0.81), (-3.24, -3.61, -1.77), (-4.08, -3.15, -2.75), (-5.04, -2.41, -3.91), (-5.78, -1.50, -5.01),
    (-6.37, -0.15, -5.77), (-7.09, 1.55, -7.52), (-7.28, 3.25, -6.95), (-7.27, 4.78, -6.16), (-7.66, 6.35, -7.52),
    (-7.45, 7.98, -6.25), (-7.04, 9.27, -5.04), (-6.26, 10.45, -3.62), (-5.09, 11.29, -2.36), (-3.51, 11.79, -1.13),
    (-1.87, 12.00, -0.42),
    # eyes and irises
    (-4.51, 6.98, -1.33), (-1.76, 6.71, -0.76), (-3.30, 7.49, -0.71), (-3.23, 6.47, -0.78), (1.76, 6.71, -0.76),
    (4.51, 6.98, -1.33), (3.30, 7.49, -0.71), (3.23, 6.47, -0.78), (-3.23, 6.99, -0.69), (3.23, 6.99, -0.69),
    # nose
    (0.00, 7.40, 0.43), (0.00, 6.55, 0.94), (0.00, 3.93, 2.84), (0.00, 3.28, 2.81), (0.00, 2.40, 1.64),
    (-1.59, 2.47, 0.72), (1.59, 2.47, 0.72),
    # brows
    (-5.94, 8.81, -2.33), (-4.28, 9.91, -0.64), (-1.51, 9.61, 0.53), (5.94, 8.81, -2.33), (4.28, 9.91, -0.64),
    (1.51, 9.61, 0.53),
)  # fmt: skip


def in_mesh(rows: slice | Sequence[int]) -> tuple[int, ...]:
    """MediaPipe's numbers of some of the 99."""
    return LANDMARKS[rows] if isinstance(rows, slice) else tuple(LANDMARKS[row] for row in rows)


def mean_shape() -> np.ndarray:
    """The table as an array, (99, 3) float64."""
    return np.array(MEAN_SHAPE)


@functools.cache
def mirror_order() -> tuple[int, ...]:
    """For each point the one that takes its place in a mirrored picture."""
    shape = mean_shape()
    distance = np.linalg.norm((shape * (-1, 1, 1))[:, None] - shape[None], axis=-1)
    return tuple(int(i) for i in distance.argmin(1))
