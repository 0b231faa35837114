"""The mean head's 99 landmarks in space, of which head pose and crops are made.

Computed here from ICT-FaceKit's mean head (MIT, USC Institute for Creative Technologies): the vertices that MediaPipe's points
lie on, each moved by what MediaPipe's landmarker sees beside its vertex in the mean over 144 renders of 16 people turned by up
to 40 degrees, and made symmetric. Centimetres; x to image right, y up, z to the camera; the origin lies half-way between
the corners of the closed mouth. The order is that of ``face_motion.LANDMARKS``.
"""

from __future__ import annotations

import functools

import numpy as np

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

LIPS, OVAL, EYES, NOSE, BROWS = slice(0, 40), slice(40, 76), slice(76, 86), slice(86, 93), slice(93, 99)
MOUTH_CORNERS = (0, 10)  # image left, image right
OUTER_EYES = (76, 81)  # outer corners, image left, image right
EYE_CORNERS = ((76, 77), (81, 80))  # outer and inner corner of each eye
IRISES = (84, 85)  # image left, image right
NOSE_TIP = 88
INNER_PAIRS = ((24, 34), (25, 35), (26, 36))  # facing points of the inner lips, below and above


def mean_shape() -> np.ndarray:
    """The table as an array, (99, 3) float64."""
    return np.array(MEAN_SHAPE)


@functools.cache
def mirror_order() -> tuple[int, ...]:
    """For each point the one that takes its place in a mirrored picture."""
    shape = mean_shape()
    distance = np.linalg.norm((shape * (-1, 1, 1))[:, None] - shape[None], axis=-1)
    return tuple(int(i) for i in distance.argmin(1))
