"""Skin for the head mesh: painted from nothing, or projected from a photograph of a face.

U texture size, V vertices. Textures are (U, U, 4) uint8: sRGB and wetness (255 inside the mouth); row 0 is the top of uv.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..face.points import OVAL
from .mesh import PARTS, HeadMesh

OUTER_LIPS, INNER_LIPS = range(48, 60), range(60, 68)  # in the 68 landmarks
BROWS, UPPER_LIDS = (range(17, 22), range(22, 27)), ((36, 37, 38, 39), (42, 43, 44, 45))
NOSTRILS = ((0.456, 0.442), (0.543, 0.442))  # uv, y down, ICT's face

SKIN_TONES = np.array(  # sRGB, from light to dark, our choice
    [
        (236, 196, 176),
        (226, 180, 156),
        (214, 164, 138),
        (196, 146, 118),
        (172, 122, 94),
        (142, 98, 74),
        (108, 72, 54),
        (82, 54, 42),
    ],
    np.float32,
)


@dataclass(frozen=True)
class TextureMap:
    """Where each texel of the face's texture lies on the mesh."""

    corners: np.ndarray  # (U, U, 3) int32 corners of its triangle
    weights: np.ndarray  # (U, U, 3) float32 barycentric, 0 outside the face
    mesh: HeadMesh

    @property
    def size(self) -> int:
        return len(self.corners)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Vertex values to texels. (V, k) -> (U, U, k) float32."""
        return np.einsum("uvc,uvck->uvk", self.weights, values[self.mesh.corner_vertex[self.corners]], dtype=np.float32)

    def uv_of(self, vertices: np.ndarray) -> np.ndarray:
        """Texel positions (x, y) of vertices of the face. (n,) -> (n, 2) float32."""
        corner_of = np.zeros(len(self.mesh.neutral), np.int32)
        face = np.flatnonzero(self.mesh.corner_part == PARTS.index("skin"))
        corner_of[self.mesh.corner_vertex[face]] = face
        uv = self.mesh.corner_uv[corner_of[vertices]]
        return np.stack([uv[:, 0], 1 - uv[:, 1]], -1) * self.size - 0.5


def texture_map(mesh: HeadMesh, size: int = 512) -> TextureMap:
    """Rasterise the face's triangles into its texture."""
    triangles = mesh.triangles[mesh.corner_part[mesh.triangles[:, 0]] == PARTS.index("skin")]
    corners = np.zeros((size, size, 3), np.int32)
    weights = np.zeros((size, size, 3), np.float32)
    points = np.stack([mesh.corner_uv[:, 0], 1 - mesh.corner_uv[:, 1]], -1).astype(np.float64) * size - 0.5
    for triangle in triangles:
        a, b, c = points[triangle]
        low = np.maximum(np.floor(np.minimum(np.minimum(a, b), c)).astype(int), 0)
        high = np.minimum(np.ceil(np.maximum(np.maximum(a, b), c)).astype(int), size - 1)
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if abs(area) < 1e-12 or (high < low).any():
            continue
        x, y = np.meshgrid(np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1))
        w_b = ((x - a[0]) * (c[1] - a[1]) - (y - a[1]) * (c[0] - a[0])) / area
        w_c = ((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])) / area
        w = np.stack([1 - w_b - w_c, w_b, w_c], -1)
        inside = (w > -0.02).all(-1)
        corners[y[inside], x[inside]] = triangle
        weights[y[inside], x[inside]] = w[inside]
    return TextureMap(corners, weights, mesh)


class SkinPainter:
    """Paints faces on one mesh; fixed regions are worked out once."""

    def __init__(self, mesh: HeadMesh, size: int = 512):
        self.mesh, self.map = mesh, texture_map(mesh, size)
        self.rest = self.map.spread(mesh.neutral)
        self.points = self.map.uv_of(mesh.points_68)
        outer, inner = self._polygon(OUTER_LIPS), self._polygon(INNER_LIPS)
        self.lips = self._soften(outer, 2.2)
        self.mouth = self._soften(inner, 2.5)
        self.fringe = self._soften(outer, 12.0)

    def _polygon(self, indices: range) -> np.ndarray:
        """A closed curve through landmarks, filled: (U, U) float32."""
        import cv2
        from scipy.interpolate import make_interp_spline

        loop = self.points[[*indices, indices[0]]]
        curve = make_interp_spline(np.arange(len(loop)), loop, k=3, bc_type="periodic")(np.linspace(0, len(loop) - 1, 200))
        mask = np.zeros((self.map.size, self.map.size), np.uint8)
        cv2.fillPoly(mask, [np.round(curve * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        return mask.astype(np.float32) / 255

    def _soften(self, mask: np.ndarray, sigma: float) -> np.ndarray:
        """Blur; ``sigma`` is in texels of a 512 texture."""
        import cv2

        return cv2.GaussianBlur(mask, (0, 0), sigma * self.map.size / 512)

    def _noise(self, rng: np.random.Generator, cells: float) -> np.ndarray:
        """Smooth noise, zero mean and unit deviation, ``cells`` bumps across the texture. (U, U) float32."""
        import cv2

        coarse = rng.standard_normal((max(int(cells), 2),) * 2).astype(np.float32)
        noise = cv2.resize(coarse, (self.map.size,) * 2, interpolation=cv2.INTER_CUBIC)
        return (noise - noise.mean()) / noise.std()

    def _blob(self, x: float, y: float, radius: float) -> np.ndarray:
        """A soft round spot on both halves of the face, by resting position in cm. (U, U) float32."""
        distance = (np.abs(self.rest[..., 0]) - x) ** 2 + (self.rest[..., 1] - y) ** 2
        return np.exp(-distance / (2 * radius**2)) * (self.rest[..., 2] > 3)

    def _strokes(self, rng: np.random.Generator, lines: tuple, width: float, thick: float, slant: float) -> np.ndarray:
        """Short hairs along polylines of landmarks: brows and lashes. (U, U) float32."""
        import cv2

        scale = self.map.size / 512
        canvas = np.zeros((self.map.size, self.map.size), np.uint8)
        for line in lines:
            path = self.points[list(line)]
            outward = np.sign(path[:, 0].mean() - self.map.size / 2)
            for position in rng.uniform(0, len(path) - 1, 420):
                k = min(int(position), len(path) - 2)
                along = path[k + 1] - path[k]
                spot = path[k] + (position - k) * along + (0, rng.normal(0, 1) * width * scale * 0.4)
                middle = 1 - abs(position / (len(path) - 1) * 2 - 1) ** 3
                length = scale * rng.uniform(0.4, 1) * width * (0.4 + 0.6 * middle)
                hair = np.array([outward * slant, -1.0 + rng.normal(0, 0.3)]) * length
                ends = np.round(np.stack([spot - hair / 2, spot + hair / 2]) * 16).astype(np.int32)
                strength, pixels = int(rng.uniform(90, 230)), max(int(thick * scale), 1)
                cv2.line(canvas, *map(tuple, ends.tolist()), strength, pixels, cv2.LINE_AA, 4)
        return self._soften(canvas.astype(np.float32) / 255, 0.7)

    def paint(self, rng: np.random.Generator, tone: np.ndarray, hair: np.ndarray, is_bearded: bool = False) -> np.ndarray:
        """A face of one tone (sRGB, 0..255) and brow colour. -> (U, U, 4) uint8."""
        colour = np.broadcast_to(tone.astype(np.float32), (*self.rest.shape[:2], 3)).copy()
        redness = 0.06 * self._blob(4.2, -0.6, 1.9) + 0.06 * self._blob(0.0, 0.2, 0.9) + 0.03 * self._blob(0, -7, 1.2)
        redness += 0.012 * self._noise(rng, 10) + 0.010 * self._noise(rng, 40)
        colour *= 1 + redness[..., None] * np.array([0.35, -0.9, -0.9], np.float32) * rng.uniform(0.6, 1.4)
        shade = 0.012 * self._noise(rng, 6) + 0.010 * self._noise(rng, 60) + 0.018 * self._noise(rng, 230)
        shade -= rng.uniform(0.08, 0.22) * self._blob(2.4, 2.5, 0.9) + 0.10 * self._blob(3.2, 4.6, 0.9)
        colour *= 1 + shade[..., None]
        freckles = np.clip(self._noise(rng, 150) - 1.9, 0, 1) * self._blob(3.0, 0.5, 2.6) * rng.choice([0, 0, 0.35])
        colour *= 1 - freckles[..., None] * np.array([0.4, 0.7, 0.8], np.float32)
        if is_bearded:
            colour = self._blend(colour, tone * 0.35 + hair * 0.3, self._beard(rng) * rng.uniform(0.25, 0.85))
        brows = self._strokes(rng, BROWS, rng.uniform(3.5, 5.5), 0.6, 1.3)
        colour = self._blend(colour, hair, np.clip(brows * rng.uniform(0.8, 1.3), 0, 0.85))
        return self._mouth_and_lids(colour, rng, tone)

    def _beard(self, rng: np.random.Generator) -> np.ndarray:
        """Stubble on jaw, chin and upper lip. (U, U) float32."""
        x, y, z = np.moveaxis(self.rest, -1, 0)
        side = np.clip((np.abs(x) - 3.2) / 1.5, 0, 1)
        edge = -1.9 - 2.0 * (1 - side) * (np.abs(x) > 2.6) + 3.5 * np.clip((np.abs(x) - 5.2) / 1.5, 0, 1)
        cover = np.clip((edge - y) / 0.7, 0, 1) * np.clip((y + 10.5) / 2, 0, 1)
        stubble = np.clip(0.75 + 0.25 * self._noise(rng, 250), 0, 1)
        return self._soften((cover * (1 - np.clip(self.lips * 1.6, 0, 1))).astype(np.float32), 3.0) * stubble

    def _mouth_and_lids(self, colour: np.ndarray, rng: np.random.Generator, tone: np.ndarray) -> np.ndarray:
        """Lips, the inside of the mouth, nostrils and lash lines; adds wetness. (U, U, 3) -> (U, U, 4) uint8."""
        redder = np.array([0.86, 0.60, 0.60]) + rng.normal(0, 0.035, 3)
        lips = tone * redder * (1 + 0.05 * self._noise(rng, 90)[..., None])
        colour = self._blend(colour, lips, self.lips * rng.uniform(0.7, 0.95))
        colour = self._blend(colour, tone * np.array([0.62, 0.36, 0.36]), np.clip(self.mouth * 1.3 - 0.1, 0, 1) * 0.85)
        for x, y in NOSTRILS:
            rows, columns = np.mgrid[: self.map.size, : self.map.size] / self.map.size
            spot = np.exp(-(((columns - x) / 0.011) ** 2 + ((rows - y) / 0.009) ** 2) / 2)
            colour *= 1 - 0.8 * spot[..., None]
        lashes = self._strokes(rng, UPPER_LIDS, 3.0, 1.0, 0.3)
        colour = self._blend(colour, np.array([25.0, 18, 16]), np.clip(lashes * 1.5, 0, 0.9))
        wet = np.where(self.mouth > 0.8, 1.0, np.minimum(0.55 * self.lips, 0.9))
        return np.round(np.clip(np.concatenate([colour, wet[..., None] * 255], -1), 0, 255)).astype(np.uint8)

    @staticmethod
    def _blend(below: np.ndarray, above: np.ndarray, cover: np.ndarray) -> np.ndarray:
        return below + (above - below) * cover[..., None]


def fit_photo(mesh: HeadMesh, points: np.ndarray, num_modes: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit pose, identity and mouth to a photograph's landmarks, seen from afar (scaled orthographic).

    points: (L, 2) pixels of the 99 landmarks. -> vertices (V, 3), projection (2, 3), shift (2,):
    pixel = projection @ vertex + shift.
    """
    movable = ("jaw", "mouth", "brow", "eyeSquint", "eyeWide")
    used = [i for i, name in enumerate(mesh.expression_names) if name.startswith(movable)]
    people = mesh.identity[:num_modes, mesh.mediapipe].astype(np.float32)
    basis = np.concatenate([people, mesh.expressions[used][:, mesh.mediapipe]])
    stiffness = np.concatenate([np.full(len(people), 0.6), np.full(len(used), 2.5)])  # pixels per deviation, per full weight
    landmarks, moved = mesh.neutral[mesh.mediapipe], np.zeros(len(basis), np.float32)
    for _ in range(4):
        shape = landmarks + np.tensordot(moved, basis, 1)
        affine = np.linalg.lstsq(np.c_[shape, np.ones(len(shape))], points * (1, -1), rcond=None)[0].T  # (2, 4), y up
        left, scales, right = np.linalg.svd(affine[:, :3], full_matrices=False)
        projection = (left @ right) * scales.mean() * np.array([[1], [-1]])
        shift = (points - shape @ projection.T).mean(0)
        seen = np.einsum("ij,klj->kli", projection, basis).reshape(len(basis), -1)
        missing = (points - shift - landmarks @ projection.T).ravel()
        moved = np.linalg.solve(seen @ seen.T + np.diag(stiffness**2), seen @ missing).astype(np.float32)
    expression = np.zeros(len(mesh.expression_names), np.float32)
    count = len(people)
    expression[used] = moved[count:]
    return mesh.shape(moved[:count], expression), projection, shift


def photo_skin(
    painter: SkinPainter, image: np.ndarray, points: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A texture taken from a frontal photograph with closed lips, painted where it does not reach.

    image (h, w, 3) uint8 RGB, points (L, 2) pixels of the 99 landmarks. -> (U, U, 4) uint8, tone (3,) sRGB.
    """
    import cv2
    from scipy.interpolate import RBFInterpolator

    mesh, size = painter.mesh, painter.map.size
    vertices, projection, shift = fit_photo(mesh, points)
    place = painter.map.spread((vertices @ projection.T + shift).astype(np.float32))
    residual = points - (vertices[mesh.mediapipe] @ projection.T + shift)
    at, first = np.unique(np.round(painter.map.uv_of(mesh.mediapipe), 2), axis=0, return_index=True)
    grid = np.stack(np.meshgrid(*[np.linspace(0, size - 1, 32)] * 2), -1).reshape(-1, 2)
    warp = RBFInterpolator(at / size, residual[first], smoothing=0.02)(grid / size).reshape(32, 32, 2)
    place = (place + cv2.resize(warp.astype(np.float32), (size, size))).astype(np.float32)
    facing = np.cross(projection[0], projection[1])
    facing = painter.map.spread(mesh.normals(vertices) @ (-facing / np.linalg.norm(facing))[:, None].astype(np.float32))[..., 0]
    oval = np.zeros(image.shape[:2], np.uint8)
    centre = points[OVAL].mean(0)
    cv2.fillPoly(oval, [np.round(centre + (points[OVAL] - centre) * 0.90).astype(np.int32)], 255)
    oval = cv2.GaussianBlur(oval, (0, 0), 0.03 * np.ptp(points[OVAL, 1]))
    seen = cv2.remap(oval, place, None, cv2.INTER_LINEAR).astype(np.float32) / 255
    cover = seen * np.clip((np.abs(facing) - 0.15) / 0.35, 0, 1) * (1 - np.clip(painter.mouth * 1.5, 0, 1))
    photo = cv2.remap(image, place, None, cv2.INTER_CUBIC).astype(np.float32)
    cheeks = (painter._blob(3.6, -0.8, 1.0) > 0.5) & (cover > 0.5)
    tone = np.median(photo[cheeks], axis=0) if cheeks.any() else SKIN_TONES[2]
    balance = np.array([1, 1, np.clip(0.7 * tone[0] / max(tone[2], 1), 1, 2) ** 0.7])  # a coloured screen starves skin of blue
    photo, tone = photo * balance, tone * balance
    painted = painter.paint(rng, tone, tone * 0.3).astype(np.float32)
    painted[..., :3] = SkinPainter._blend(painted[..., :3], photo, painter._soften(cover, 2.0))
    return np.round(np.clip(painted, 0, 255)).astype(np.uint8), tone
