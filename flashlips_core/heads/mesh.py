"""A head mesh with identity and expression shapes (ICT-FaceKit's layout), and the camera that looks at it.

V vertices, C corners (vertices split along texture seams), F triangles, E expressions, I identity modes. Lengths in cm;
head space has x to image right, y up, z towards the camera; images have y down.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..types import FlashLipsError

PARTS = ("skin", "back", "gums", "teeth", "eye")
PART_OF_MATERIAL = {
    "M_Face": "skin",
    "M_BackHead": "back",
    "M_GumsTongue": "gums",
    "M_Teeth": "teeth",
    "M_ScleraLeft": "eye",
    "M_ScleraRight": "eye",
}

# ICT-FaceKit's vertices for the 68 landmarks (vertex_indices.json, "idx_to_landmark_verts")
ICT_POINTS_68 = (
    1225, 1888, 1052, 367, 1719, 1722, 2199, 1447, 966, 3661, 4390, 3927, 3924, 2608, 3272, 4088, 3443, 268, 493, 1914,
    2044, 1401, 3615, 4240, 4114, 2734, 2509, 978, 4527, 4942, 4857, 1140, 2075, 1147, 4269, 3360, 1507, 1542, 1537, 1528,
    1518, 1511, 3742, 3751, 3756, 3721, 3725, 3732, 5708, 5695, 2081, 0, 4275, 6200, 6213, 6346, 6461, 5518, 5957, 5841,
    5702, 5711, 5533, 6216, 6207, 6470, 5517, 5966,
)  # fmt: skip
# The visible ICT vertex nearest to each of the 99 landmarks (``face.points``) over 45 renders (3 people, 5 mouths, 3 head turns)
# that MediaPipe looked at; lips within 1.6 pixels of a 256 crop
ICT_MEDIAPIPE_VERTICES = (
    5681, 5732, 5826, 5870, 5975, 5520, 6479, 6375, 6331, 6237, 6213, 5601, 5665, 5719, 2081, 0, 4275, 6225, 6142, 6127,
    5917, 5820, 5847, 5966, 6009, 5517, 6513, 6470, 6352, 6325, 6102, 5569, 5604, 5683, 6025, 5527, 6542, 6131, 6111, 6074,
    973, 2559, 3636, 4184, 3220, 4075, 4000, 7430, 3413, 3432, 7119, 2478, 2999, 3085, 3027, 3882, 4388, 3710, 965, 1496,
    2197, 1675, 786, 844, 757, 237, 7846, 7526, 1195, 8158, 1226, 290, 1954, 1984, 1422, 1429, 569, 887, 683, 1515,
    2838, 2809, 4162, 3728, 23483, 21915, 977, 4511, 4857, 4553, 5091, 1267, 3359, 432, 480, 2050, 3909, 3901, 4246,
)  # fmt: skip

PIVOT = np.array([0.0, -4.0, 0.0], np.float32)  # the head turns around the top of its neck
EYE_INSET = 0.08  # cm: ICT's eyeballs otherwise shine through closed lids
DRIFT = 0.04  # cm: smaller movements are scan noise; ears that shiver with the mouth would spoil exact pairs
EYES = ((36, 42), (42, 48))  # image left, image right, in the 68
NOSE_TIP, MOUTH_LEFT, MOUTH_RIGHT = 30, 48, 54
INNER_UPPER_LIP, INNER_LOWER_LIP = (61, 62, 63), (65, 66, 67)


@dataclass(frozen=True)
class HeadMesh:
    """Rest shape, linear shapes and triangles."""

    neutral: np.ndarray  # (V, 3) float32
    identity: np.ndarray  # (I, V, 3) float16, displacement of one deviation
    expressions: np.ndarray  # (E, V, 3) float32, displacement at weight 1
    expression_names: tuple[str, ...]
    triangles: np.ndarray  # (F, 3) int32 into corners
    corner_vertex: np.ndarray  # (C,) int32
    corner_uv: np.ndarray  # (C, 2) float32
    corner_part: np.ndarray  # (C,) int8 into PARTS
    points_68: np.ndarray  # (68,) int32 vertices
    mediapipe: np.ndarray  # (L,) int32 vertices of the 99 landmarks

    def shape(self, identity: np.ndarray, expression: np.ndarray) -> np.ndarray:
        """Vertices of one face. (I,), (E,) -> (V, 3) float32."""
        return self.express(self.identify(identity), expression)

    def identify(self, identity: np.ndarray) -> np.ndarray:
        """The resting face of one person. (I,) -> (V, 3) float32."""
        count = len(identity)
        moved = np.tensordot(np.asarray(identity, np.float32), self.identity[:count].astype(np.float32), 1)
        return self.neutral + moved

    def express(self, resting: np.ndarray, expression: np.ndarray) -> np.ndarray:
        """Add an expression to a resting face. (V, 3), (E,) -> (V, 3) float32."""
        used = np.flatnonzero(expression)
        if not len(used):
            return resting.astype(np.float32)
        weights = np.asarray(expression, np.float32)[used]
        return resting + (weights @ self.expressions[used].reshape(len(used), -1)).reshape(-1, 3)

    def turn_eyes(self, vertices: np.ndarray, yaw: float, pitch: float) -> np.ndarray:
        """Turn both eyeballs about their centres (radians; positive looks to image right, and down). (V, 3) -> (V, 3)."""
        turned = vertices.copy()
        eye = np.unique(self.corner_vertex[self.corner_part == PARTS.index("eye")])
        for side in (eye[vertices[eye, 0] < 0], eye[vertices[eye, 0] >= 0]):
            if len(side):
                low, high = vertices[side].min(0), vertices[side].max(0)
                centre = np.append((low[:2] + high[:2]) / 2, high[2] - (high[0] - low[0]) / 2)  # only the front is kept
                turned[side] = (vertices[side] - centre) @ rotation(yaw, pitch, 0).T + centre
        return turned

    def normals(self, vertices: np.ndarray) -> np.ndarray:
        """Smooth unit normals. (V, 3) -> (V, 3) float32."""
        faces = self.corner_vertex[self.triangles]
        a, b, c = vertices[faces[:, 0]], vertices[faces[:, 1]], vertices[faces[:, 2]]
        face = np.cross(b - a, c - a)
        summed = np.stack(
            [np.bincount(faces.ravel(), np.repeat(face[:, k], 3), minlength=len(vertices)) for k in range(3)], -1
        ).astype(np.float32)
        return summed / np.maximum(np.linalg.norm(summed, axis=-1, keepdims=True), 1e-9)

    def five_points(self, vertices: np.ndarray) -> np.ndarray:
        """Eye centres, nose tip, mouth corners: the order of a face track. (V, 3) -> (5, 3)."""
        points = vertices[self.points_68]
        eyes = [points[start:stop].mean(0) for start, stop in EYES]
        return np.stack([*eyes, points[NOSE_TIP], points[MOUTH_LEFT], points[MOUTH_RIGHT]])

    def weights(self, **named: float) -> np.ndarray:
        """Expression weights by name; ``mouthSmile`` sets mouthSmile_L and mouthSmile_R. -> (E,) float32."""
        values = np.zeros(len(self.expression_names), np.float32)
        for name, value in named.items():
            found = [i for i, known in enumerate(self.expression_names) if known in (name, name + "_L", name + "_R")]
            if not found:
                raise FlashLipsError(f"The mesh has no expression '{name}'; it has {', '.join(self.expression_names)}.")
            values[found] = value
        return values


@dataclass(frozen=True)
class Camera:
    """A pinhole that looks along -z at the head; image units are focal lengths, so crops give the pixels."""

    head: np.ndarray  # (3, 3) rotation of the head about PIVOT
    distance: float  # cm from the pivot
    offset: tuple[float, float] = (0.0, 0.0)  # cm, the head's shift to image right and up

    def to_view(self, points: np.ndarray) -> np.ndarray:
        """Head space to camera space. (..., 3) -> (..., 3) float32."""
        shift = np.array([self.offset[0], self.offset[1], -self.distance], np.float32)
        return ((points - PIVOT) @ self.head.T + PIVOT + shift).astype(np.float32)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Head space to the image plane, y down. (..., 3) -> (..., 2) float32."""
        view = self.to_view(points)
        return np.stack([view[..., 0], -view[..., 1]], -1) / -view[..., 2:]

    def clip_matrix(self, box: np.ndarray) -> np.ndarray:
        """OpenGL's matrix from head space to the clip space of one crop. (4,) xyxy in image units -> (4, 4) float32."""
        x1, y1, x2, y2 = (float(v) for v in box)
        near, far = self.distance * 0.4, self.distance * 2
        crop = np.zeros((4, 4))
        crop[0, 0], crop[0, 2] = 2 / (x2 - x1), (x1 + x2) / (x2 - x1)
        crop[1, 1], crop[1, 2] = 2 / (y2 - y1), -(y1 + y2) / (y2 - y1)
        crop[2, 2], crop[2, 3] = -(far + near) / (far - near), -2 * far * near / (far - near)
        crop[3, 2] = -1
        move = np.eye(4)
        move[:3, :3] = self.head
        move[:3, 3] = PIVOT - self.head @ PIVOT + np.array([self.offset[0], self.offset[1], -self.distance])
        return (crop @ move).astype(np.float32)


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Radians; positive turns to image right, nods down, tilts clockwise in the image. -> (3, 3) float32."""
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    nod = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    tilt = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])
    return (tilt @ turn @ nod).astype(np.float32)


def load_head(path: str | Path) -> HeadMesh:
    """Read an ICT-FaceKit npz: neutral, identity, expr, expr_names, quads, quads_uv (-1 pads triangles), uv, mat, mat_names."""
    path = Path(path)
    if not path.is_file():
        raise FlashLipsError(f"There is no head mesh at '{path}'; give the path of ict_facekit_f16.npz with --mesh.")
    with np.load(path) as data:
        missing = {"neutral", "identity", "expr", "expr_names", "quads", "quads_uv", "uv", "mat", "mat_names"} - set(data.files)
        if missing:
            raise FlashLipsError(f"'{path}' is no head mesh: it lacks {', '.join(sorted(missing))}; give ict_facekit_f16.npz.")
        return from_arrays({name: data[name] for name in data.files})


def from_arrays(data: dict[str, np.ndarray]) -> HeadMesh:
    """Split quads into triangles, drop the parts that are not drawn; ``points_68`` and ``mediapipe`` default to ICT's."""
    parts = [PART_OF_MATERIAL.get(str(name)) for name in data["mat_names"]]
    part = np.array([PARTS.index(name) if name else -1 for name in parts], np.int8)[data["mat"]]
    kept = part >= 0
    quads, quads_uv, part = data["quads"][kept], data["quads_uv"][kept], part[kept]
    resting = data["neutral"][np.maximum(quads, 0)].mean(1)
    hidden = ((part == PARTS.index("teeth")) & (resting[:, 2] < 7.5)) | ((part == PARTS.index("eye")) & (resting[:, 2] < 8.0))
    quads, quads_uv, part = quads[~hidden], quads_uv[~hidden], part[~hidden]  # molars, backs of eyes: never seen, costly to draw
    whole = quads_uv[:, 3] >= 0
    triangles = np.concatenate([quads_uv[:, :3], quads_uv[whole][:, [0, 2, 3]]])
    corner_vertex = np.zeros(len(data["uv"]), np.int32)
    corner_part = np.full(len(data["uv"]), -1, np.int8)  # -1: only parts that are not drawn use it
    for k in range(4):
        valid = quads_uv[:, k] >= 0
        corner_vertex[quads_uv[valid, k]] = quads[valid, k]
        corner_part[quads_uv[valid, k]] = part[valid]
    neutral = data["neutral"].astype(np.float32)
    neutral[np.unique(corner_vertex[corner_part == PARTS.index("eye")]), 2] -= EYE_INSET
    expressions = data["expr"].astype(np.float32)
    far = np.linalg.norm(expressions, axis=-1, keepdims=True)
    expressions *= np.clip((far - DRIFT) / DRIFT, 0, 1)
    return HeadMesh(
        neutral=neutral,
        identity=data["identity"],
        expressions=expressions,
        expression_names=tuple(str(name) for name in data["expr_names"]),
        triangles=triangles.astype(np.int32),
        corner_vertex=corner_vertex,
        corner_uv=data["uv"].astype(np.float32),
        corner_part=corner_part,
        points_68=np.asarray(data.get("points_68", ICT_POINTS_68), np.int32),
        mediapipe=np.asarray(data.get("mediapipe", ICT_MEDIAPIPE_VERTICES), np.int32),
    )


def arkit_weights(mesh: HeadMesh, expression: np.ndarray, names: list[str]) -> np.ndarray:
    """Expression weights under ARKit's names, as MediaPipe lists them; sides of an unsided shape are averaged.

    (..., E) -> (..., len(names)) float32; names that the mesh lacks ("_neutral") stay 0.
    """
    known = {name: i for i, name in enumerate(mesh.expression_names)}
    result = np.zeros((*expression.shape[:-1], len(names)), np.float32)
    for column, name in enumerate(names):
        sided = re.sub("Left$", "_L", re.sub("Right$", "_R", name))
        for candidates in ([name], [sided], [name + "_L", name + "_R"]):
            found = [known[c] for c in candidates if c in known]
            if found:
                result[..., column] = expression[..., found].mean(-1)
                break
    return result
