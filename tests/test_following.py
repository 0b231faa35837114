"""Faces followed by their landmarks: the detector is asked only when it must be; and the area that a face covers in a crop."""

from __future__ import annotations

import numpy as np
import torch
from painted_faces import BLUE, RED, PatchDetector, clip_of, draw

from flashlips_core.face import track_faces, track_scenes
from flashlips_core.face.following import Follower
from flashlips_core.face.landmarks import square_around
from flashlips_core.face.points import OVAL, mean_shape
from flashlips_core.face.readings import box_around, five_points, lip_gap
from flashlips_core.face.region import face_region
from flashlips_core.turned import to_pixels, to_shares

PX_PER_SIDE = 1 / 20.0  # of the drawn square's side is a centimetre of the mean head


def landmarks_at(x: float, y: float, side: float) -> np.ndarray:
    """The landmarks of the face that a drawn square stands for. -> (99, 2) pixels."""
    points = mean_shape()[:, :2] * (1, -1) * side * PX_PER_SIDE
    return points - (points.min(0) + points.max(0)) / 2 + (x, y)


class ToyLandmarker:
    """Sees a coloured square in a crop, and says that a face's landmarks lie there."""

    def __init__(self) -> None:
        self.looks = 0

    def find(self, cut, squares: np.ndarray, looks: int) -> tuple[np.ndarray, np.ndarray]:
        crops = cut(np.arange(len(squares)), squares, 64)
        self.looks += looks * len(squares)
        points, sure = np.zeros((len(squares), 99, 2), np.float32), np.zeros(len(squares))
        for k, crop in enumerate(crops):
            rows, columns = torch.nonzero((crop[0] - crop[2]).abs() > 0.3, as_tuple=True)
            if len(rows) > 60:
                centre = np.array([[float(columns.float().mean()) + 0.5, float(rows.float().mean()) + 0.5]]) / 64
                side = float(len(rows)) ** 0.5 / 64 * (squares[k, 2] - squares[k, 0])
                points[k], sure[k] = landmarks_at(*to_pixels(centre, squares[k])[0], side), 0.9
        return points, sure


class CountingDetector(PatchDetector):
    """Counts the pictures that it is shown."""

    def __init__(self) -> None:
        self.follower, self.pictures = Follower(ToyLandmarker()), 0

    def find(self, images, smallest_px=12.0):
        self.pictures += len(images)
        return super().find(images, smallest_px)


def test_a_moving_face_is_followed_without_the_detector() -> None:
    frames, info = clip_of(lambda t: [(60 + 2.0 * t, 80, 44, RED)], 40)
    detector = CountingDetector()
    track = track_faces(frames, info, detector)
    assert track.present.all() and track.landmarks.shape == (40, 99, 2) and track.roll.shape == (40,)
    assert detector.pictures <= 4  # the first frame and one a second later, each found and measured
    true = np.stack([landmarks_at(60 + 2.0 * t, 80, 44) for t in range(40)])
    assert np.abs(track.landmarks - true).max() < 2.5
    assert np.array_equal(track.points, five_points(track.landmarks))
    assert np.abs(track.roll).max() < 0.02


def test_a_lost_face_is_searched_by_the_detector_again() -> None:
    frames, info = clip_of(lambda t: [(45, 60, 40, RED) if t < 10 else (190, 110, 40, RED)], 60)
    detector = CountingDetector()
    track = track_faces(frames, info, detector)
    assert track.present.all()
    assert detector.pictures <= 36  # each frame for a second, in which the face might be back in its old place
    middle = box_around(track.landmarks).reshape(-1, 2, 2).mean(1)
    assert np.abs(middle[:10] - (45, 60)).max() < 3 and np.abs(middle[10:] - (190, 110)).max() < 3


def test_while_nobody_is_there_each_frame_is_searched_and_none_is_invented() -> None:
    frames, info = clip_of(lambda t: [] if 8 <= t < 20 else [(80 + t, 80, 44, RED)], 24)
    detector = CountingDetector()
    track = track_faces(frames, info, detector)
    assert np.flatnonzero(~track.present).tolist() == list(range(8, 20))
    assert 12 <= detector.pictures <= 18


def test_what_a_detector_takes_for_a_face_must_have_landmarks() -> None:
    class Mistaken(CountingDetector):
        def find(self, images, smallest_px=12.0):
            found = super().find(images, smallest_px)
            return [
                [*faces, faces[0].__class__(faces[0].box * 0 + (2, 2, 20, 20), faces[0].points - 70, 0.99)] for faces in found
            ]

    frames, info = clip_of(lambda t: [(120, 90, 50, RED)], 6)
    [(_, [track])] = track_scenes(frames, info, Mistaken())
    assert np.abs(box_around(track.landmarks).reshape(-1, 2, 2).mean(1) - (120, 90)).max() < 3


def test_two_faces_are_followed_at_once() -> None:
    frames, info = clip_of(lambda t: [(50 + t, 80, 40, RED), (190 - t, 80, 48, BLUE)], 12)
    detector = CountingDetector()
    [(_, tracks)] = track_scenes(frames, info, detector)
    x = sorted(float(box_around(track.landmarks[0])[[0, 2]].mean()) for track in tracks)
    assert len(tracks) == 2 and abs(x[0] - 50) < 3 and abs(x[1] - 190) < 3 and detector.pictures <= 4


def test_a_follower_leaves_out_what_it_does_not_see() -> None:
    follower, frame = Follower(ToyLandmarker()), draw([(80, 80, 44, RED)])
    near, far = landmarks_at(83, 78, 44), landmarks_at(200, 120, 44)
    [found] = follower.follow(frame, np.stack([far, near]))
    assert np.abs(found.landmarks - landmarks_at(80, 80, 44)).max() < 2 and found.score == 0.9
    assert np.array_equal(found.points, five_points(found.landmarks)) and follower.measure(frame, []) == []
    assert follower.follow(draw([]), near[None]) == []


def test_the_lips_gap_grows_with_the_mouth_and_not_with_the_face() -> None:
    points = landmarks_at(100, 100, 200)
    opened = points.copy()
    opened[[24, 25, 26]] += (0, 20)  # the lower inner lip
    gaps = lip_gap(np.stack([points, opened, 3 * opened + 50]))
    assert gaps[1] > gaps[0] + 0.1 and abs(gaps[1] - gaps[2]) < 1e-6


# ---- the face's area -------------------------------------------------------------------------------------------------------


def test_the_area_is_the_faces_and_a_little_around_it() -> None:
    landmarks = landmarks_at(100, 100, 120)
    outlines = to_shares(landmarks[OVAL], square_around(landmarks))[None].repeat(2, 0)
    outlines[1] -= (0.2, 0.0)
    for size in (24, 96):
        area = face_region(outlines, size)
        assert area.shape == (2, 1, size, size) and area.dtype == torch.float32 and 0 <= area.min() and area.max() <= 1
        middle = np.rint(outlines.mean(1) * size).astype(int)
        assert all(area[i, 0, y, x] > 0.99 for i, (x, y) in enumerate(middle))
        assert not area[0, 0, 0, 0] and not area[0, 0, -1, -1] and not area[1, 0, :, -size // 8 :].any()
    low, high = outlines[0].min(0), outlines[0].max(0)
    rows, columns = (area[0, 0] > 0.5).any(1).nonzero() / 96, (area[0, 0] > 0.5).any(0).nonzero() / 96
    for seen, axis in ((columns, 0), (rows, 1)):
        assert low[axis] - 0.08 < seen.min() < low[axis] and high[axis] - 0.02 < seen.max() < high[axis] + 0.08
