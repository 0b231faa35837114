"""Draw a head mesh with OpenGL (moderngl; Mesa's llvmpipe will do), with soft skin, a mouth interior and eyes.

S picture size in pixels. Colours in ``Look`` are linear light in 0..1 unless a comment
says otherwise; the curve of a picture is a square root, near enough to sRGB.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..types import FlashLipsError
from .mesh import INNER_LOWER_LIP, INNER_UPPER_LIP, Camera, HeadMesh

Colour = tuple[float, float, float]

# Two passes: what is seen where (cheap, because each tiny triangle costs a block of pixels), then its light, once per pixel.
SURFACE_VERTEX = """
#version 330
uniform mat4 clip; uniform mat3 turn;
in vec3 in_position; in vec3 in_normal; in vec3 in_rest; in vec2 in_uv; in float in_part;
out vec3 normal; out vec3 head; out vec3 rest; out vec2 uv; flat out float part;
void main() {
    gl_Position = clip * vec4(in_position, 1.0);
    normal = turn * in_normal; head = in_position; rest = in_rest; uv = in_uv; part = in_part;
}
"""

SURFACE_FRAGMENT = """
#version 330
in vec3 normal; in vec3 head; in vec3 rest; in vec2 uv; flat in float part;
layout(location = 0) out vec4 surface_normal;
layout(location = 1) out vec4 surface_rest;
layout(location = 2) out vec4 surface_head;
void main() {
    surface_normal = vec4(normal, (part + 1.0) * (gl_FrontFacing ? 1.0 : -1.0));
    surface_rest = vec4(rest, uv.x); surface_head = vec4(head, uv.y);
}
"""

LIGHT_VERTEX = """
#version 330
in vec2 in_corner; void main() { gl_Position = vec4(in_corner, 0.0, 1.0); }
"""

LIGHT_FRAGMENT = """
#version 330
uniform sampler2D surface_normal, surface_rest, surface_head, skin;
uniform sampler3D grain;
uniform vec3 back_skin, hair, iris, teeth, gums, cloth, ambient;
uniform vec3 light_direction[2]; uniform vec3 light_colour[2];
uniform float hair_amount, hairline, shine;
uniform vec3 lips;  // y of the inner upper lip, y of the inner lower lip, z of the lips (head space)
out vec4 colour;

float noise(vec3 p) { return textureLod(grain, p / 32.0, 0.0).r; }
float hair_cover(vec3 rest, bool ear) {
    float z = rest.z;
    float line = z > 4.0 ? mix(4.6, 9.6, smoothstep(3.5, 9.0, z)) : mix(-4.5, 4.6, smoothstep(-5.0, 4.0, z));
    float ragged = 0.5 * noise(rest * 2.5) + 0.4 * noise(rest * 9.0);
    return ear ? 0.0 : hair_amount * smoothstep(-0.5, 0.6, rest.y - line - hairline + ragged - 0.5);
}
vec3 lit(vec3 albedo, vec3 n, float soft, float gloss, float power) {
    vec3 total = albedo * ambient * (0.72 + 0.28 * n.y), spread = soft * vec3(1.0, 0.55, 0.45);
    for (int i = 0; i < 2; i++) {
        float d = dot(n, light_direction[i]);
        vec3 h = normalize(light_direction[i] + vec3(0, 0, 1));
        vec3 wrapped = clamp((vec3(d) + spread) / (1.0 + spread), 0.0, 1.0);
        total += light_colour[i] * (albedo * wrapped + gloss * pow(max(dot(n, h), 0.0), power) * step(0.0, d));
    }
    return total;
}
float cavity(vec3 head) {
    float corner = mix(0.2, 1.0, smoothstep(2.6, 1.0, abs(head.x)));
    float depth = smoothstep(5.0, 0.6, lips.z - head.z);
    float above = smoothstep(-0.1, 0.55, lips.x - head.y), below = smoothstep(-0.1, 0.5, head.y - lips.y);
    return corner * mix(0.06, 1.0, depth * depth) * mix(0.32, 1.0, above) * mix(0.35, 1.0, below);
}
vec4 skin_albedo(vec3 rest, vec2 uv, bool face, float fine, out float cover, out float dressed) {  // and wetness
    vec4 texel = face ? textureLod(skin, uv, 0.0) : vec4(back_skin, 0.0);
    cover = hair_cover(rest, face && abs(uv.x - 0.5) > 0.382 && uv.y > 0.42 && uv.y < 0.69);
    vec3 strands = hair * fine * (0.6 + 0.8 * noise(rest * vec3(30, 12, 30)));
    vec3 albedo = mix(face ? texel.rgb * texel.rgb : texel.rgb, strands, cover);
    dressed = smoothstep(0.0, 0.12, -11.6 - 0.16 * rest.z - rest.y + 0.045 * abs(rest.x));
    return vec4(mix(albedo, cloth * fine, dressed), texel.a);
}
vec3 eye_albedo(vec2 q, float grainy) {
    float r = length(q);
    vec3 white = vec3(0.62, 0.56, 0.53) * (1.0 - 0.25 * smoothstep(0.15, 0.3, r));
    vec3 ring = iris * (0.65 + 0.7 * grainy) * mix(0.35, 1.0, smoothstep(0.142, 0.118, r));
    return mix(vec3(0.006), mix(ring, white, smoothstep(0.134, 0.15, r)), smoothstep(0.05, 0.06, r));
}
void main() {  // software OpenGL runs both sides of every branch, so the parts only choose what one lighting step reads
    ivec2 at = ivec2(gl_FragCoord.xy);
    vec4 s = texelFetch(surface_normal, at, 0), t = texelFetch(surface_rest, at, 0), u = texelFetch(surface_head, at, 0);
    vec3 n = normalize(s.xyz + vec3(0, 0, 1e-6)), rest = t.xyz, head = u.xyz;
    vec2 uv = vec2(t.w, u.w), q = fract(uv) - 0.5;
    int part = int(abs(s.w) + 0.5) - 1;
    float cover, dressed, grainy = noise(part <= 1 ? rest * 14.0 : part == 4 ? vec3(normalize(q) * 9.0, 1.0) : rest * 4.0);
    vec4 face = skin_albedo(rest, uv, part == 0, 0.85 + 0.3 * grainy, cover, dressed);
    vec3 albedo = face.rgb;
    float soft = 0.38 * (1.0 - cover), power = mix(14.0, 40.0, face.a), shade = 1.0;
    float gloss = shine * (0.035 + 0.10 * face.a) * (1.0 - 0.8 * cover) * (1.0 - dressed) * (0.85 + 0.3 * grainy);
    float hollow = cavity(head);
    if (part <= 1) {
        shade = mix(0.55, 1.0, smoothstep(-9.5, -6.0, rest.y + 0.35 * max(rest.z - 4.0, 0.0)));  // under the chin
        if (part == 0 && face.a > 0.97) shade *= mix(1.0, hollow, 0.8);
        if (s.w < 0.0) { albedo = vec3(0.02, 0.006, 0.006); gloss = 0.0; }
    } else if (part == 2) { albedo = gums * (0.85 + 0.3 * grainy); gloss = 0.06; power = 30.0; shade = hollow;
    } else if (part == 3) { albedo = teeth * (0.94 + 0.12 * grainy); soft = 0.45; gloss = 0.10; power = 40.0; shade = hollow;
    } else {
        albedo = eye_albedo(q, grainy); soft = 0.4; gloss = 0.9; power = 260.0;
        shade = mix(0.42, 1.0, smoothstep(4.15, 3.35, rest.y));
    }
    vec3 light = sqrt(clamp(lit(albedo, n, soft, gloss, power) * shade, 0.0, 1.0));
    colour = s.w == 0.0 ? vec4(0.0) : vec4(light, 1.0);
}
"""


@dataclass(frozen=True)
class Look:
    """Everything of a picture but shape, pose and camera."""

    skin: np.ndarray  # (U, U, 4) uint8, sRGB and wetness (255 inside the mouth), row 0 at uv's top
    back_skin: Colour = (0.45, 0.27, 0.20)
    hair: Colour = (0.03, 0.02, 0.015)
    hair_amount: float = 0.9
    hairline: float = 0.0  # cm up
    iris: Colour = (0.10, 0.06, 0.03)
    teeth: Colour = (0.80, 0.72, 0.58)
    gums: Colour = (0.42, 0.13, 0.12)
    cloth: Colour = (0.05, 0.07, 0.12)
    ambient: Colour = (0.45, 0.45, 0.47)
    light_directions: tuple[Colour, Colour] = ((0.4, 0.5, 0.8), (-0.6, 0.2, 0.6))  # towards the lights, camera space
    light_colours: tuple[Colour, Colour] = ((0.5, 0.48, 0.45), (0.2, 0.2, 0.22))
    shine: float = 1.0
    background: np.ndarray = field(default_factory=lambda: np.full((1, 1, 3), 128, np.uint8))  # (h, w, 3), sRGB, stretched


class HeadRenderer:
    """One mesh on one OpenGL context; a context manager.

    Args:
        size: side of the picture in pixels.
        oversample: samples per pixel side.
    """

    def __init__(self, mesh: HeadMesh, size: int = 256, oversample: int = 2):
        self.mesh, self.size, self.oversample = mesh, size, oversample
        self.context = gl = _context()
        self.surface = gl.program(vertex_shader=SURFACE_VERTEX, fragment_shader=SURFACE_FRAGMENT)
        self.light = gl.program(vertex_shader=LIGHT_VERTEX, fragment_shader=LIGHT_FRAGMENT)
        fixed = np.concatenate([mesh.neutral[mesh.corner_vertex], mesh.corner_uv, mesh.corner_part[:, None]], 1).astype("f4")
        self.moving = gl.buffer(reserve=len(fixed) * 24)
        vertices = [
            (self.moving, "3f 3f", "in_position", "in_normal"),
            (gl.buffer(fixed), "3f 2f 1f", "in_rest", "in_uv", "in_part"),
        ]
        self.triangles = gl.vertex_array(self.surface, vertices, gl.buffer(mesh.triangles.astype("i4")))
        self.quad = gl.vertex_array(self.light, [(gl.buffer(np.array([-1, -1, 3, -1, -1, 3], "f4")), "2f", "in_corner")])
        drawn = (size * oversample, size * oversample)
        self.layers = [gl.texture(drawn, 4, dtype="f4") for _ in range(3)]
        self.seen = gl.framebuffer(self.layers, gl.depth_renderbuffer(drawn))
        self.picture = gl.framebuffer([gl.renderbuffer(drawn, 4)])
        self.grain = gl.texture3d((32, 32, 32), 1, np.random.default_rng(0).integers(0, 256, 32**3, np.uint8).tobytes())
        for unit, texture in enumerate((*self.layers, self.grain)):
            texture.use(unit)
        for unit, name in enumerate(("surface_normal", "surface_rest", "surface_head", "grain", "skin")):
            self.light[name].value = unit
        self.look: Look | None = None
        self.texture = None

    def __enter__(self) -> HeadRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.release()

    def set_look(self, look: Look) -> None:
        """Send a look's texture and colours to the device."""
        if self.texture is not None:
            self.texture.release()
        height, width = look.skin.shape[:2]
        self.texture = self.context.texture((width, height), 4, np.ascontiguousarray(look.skin[::-1]).tobytes())
        self.texture.use(4)
        for name in ("back_skin", "hair", "iris", "teeth", "gums", "cloth", "ambient", "hair_amount", "hairline", "shine"):
            self.light[name].value = getattr(look, name)
        directions = np.array(look.light_directions, "f4")
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        self.light["light_direction"].write(directions.tobytes())
        self.light["light_colour"].write(np.array(look.light_colours, "f4").tobytes())
        self.look = look

    def draw(self, vertices: np.ndarray, camera: Camera, box: np.ndarray) -> np.ndarray:
        """One picture of what ``box`` (xyxy, the camera's image units) holds. (V, 3) -> (S, S, 3) uint8 RGB."""
        if self.look is None:
            raise ValueError("Call set_look before draw.")
        gl, mesh = self.context, self.mesh
        moving = np.concatenate([vertices, mesh.normals(vertices)], 1, dtype="f4")[mesh.corner_vertex]
        self.moving.write(np.ascontiguousarray(moving))
        self.surface["clip"].write(np.ascontiguousarray(camera.clip_matrix(box).T))
        self.surface["turn"].write(np.ascontiguousarray(camera.head.T.astype("f4")))
        inner = vertices[mesh.points_68]
        upper, lower = inner[list(INNER_UPPER_LIP)].mean(0), inner[list(INNER_LOWER_LIP)].mean(0)
        self.light["lips"].value = (float(upper[1]), float(lower[1]), float(max(upper[2], lower[2])))
        self.seen.use()
        self.seen.clear(0, 0, 0, 0)
        gl.enable_only(gl.DEPTH_TEST)
        self.triangles.render()
        self.picture.use()
        gl.enable_only(gl.NOTHING)
        self.quad.render()
        side = self.size * self.oversample
        pixels = np.frombuffer(self.picture.read(components=4), np.uint8).reshape(side, side, 4)[::-1]
        return self._over_background(pixels)

    def _over_background(self, pixels: np.ndarray) -> np.ndarray:
        """Average the samples of premultiplied (kS, kS, 4) and lay them over the look's background, (S, S, 3)."""
        k, background = self.oversample, self.look.background
        summed = np.zeros((self.size, self.size, 4), np.uint32)
        for row in range(k):
            for column in range(k):
                summed += pixels[row::k, column::k]
        rows = np.arange(self.size) * background.shape[0] // self.size
        columns = np.arange(self.size) * background.shape[1] // self.size
        behind = background[rows[:, None], columns[None]].astype(np.uint32)
        full = 255 * k * k
        mixed = summed[..., :3] + (behind * (full - summed[..., 3:]) + 127) // 255
        return ((mixed + k * k // 2) // (k * k)).astype(np.uint8)


def _context():
    """A context without a window: EGL on a Linux machine without a screen, else what the platform gives."""
    try:
        import moderngl
    except ModuleNotFoundError as error:
        raise FlashLipsError("Rendering synthetic heads needs moderngl; install it with 'pip install moderngl'.") from error
    failures = []
    for options in ({"backend": "egl"}, {}):
        try:
            return moderngl.create_standalone_context(require=330, **options)
        except Exception as error:  # moderngl and glcontext raise bare Exception
            failures.append(str(error))
    raise FlashLipsError(f"No OpenGL 3.3 here ({'; '.join(failures)}); install Mesa (Debian: libegl1 libgl1 libgl1-mesa-dri).")
