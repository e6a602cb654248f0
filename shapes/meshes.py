"""Parts as triangles: boxes, superquadrics where a shape has their exponents; points on them; files of them."""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from runtime.files import replacing
from shapes.sets import EXPONENTS, Shape

QUARTER = 6  # steps of a superquadric's grid from an axis to the next
SHARPEST, ROUNDEST = 0.02, 2.0  # exponents are clamped to these
# Part i has colour i mod 10. All are about equally bright, so that light and shade can be told from colour.
PALETTE = np.array(
    [
        *((92, 143, 201), (238, 157, 85), (113, 178, 112), (219, 108, 108), (154, 127, 196)),
        *((209, 182, 96), (98, 183, 189), (226, 141, 181), (166, 131, 109), (155, 176, 91)),
    ],
    np.uint8,
)
FADED = np.array((214, 214, 216), np.uint8)


def part_colours(
    parts: int | Sequence[int] | np.ndarray, faded: Sequence[bool] | np.ndarray | None = None
) -> np.ndarray:
    """The colours of parts, (parts, 3) uint8: the palette's, and pale grey for faded parts.

    Args:
        parts: the number of parts, or their numbers where these are not 0, 1, ...
        faded: a mask of the parts that are pale.
    """
    colours = PALETTE[(np.arange(parts) if isinstance(parts, int) else np.asarray(parts)) % len(PALETTE)]
    if faded is not None:
        colours[np.asarray(faded, bool)] = FADED
    return colours


def linear(colours: np.ndarray) -> np.ndarray:
    """Colours from sRGB to linear, both uint8; a .glb stores its materials' colours so."""
    c = colours / 255
    return np.round(255 * np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)).astype(np.uint8)


def rotations(axes: np.ndarray) -> np.ndarray:
    """Rotations (P, 3, 3), whose rows are a part's axes, from their first two rows (P, 6)."""
    first, second = axes[:, :3], axes[:, 3:]
    return np.stack([first, second, np.cross(first, second)], axis=1)


@cache
def box_grid() -> tuple[np.ndarray, np.ndarray]:
    """The corners of a cube, (8, 3) of -1 and 1, and its triangles (12, 3), seen from outside anticlockwise."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    sides = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return corners, np.array([triangle for a, b, c, d in sides for triangle in ((a, b, c), (a, c, d))])


@cache
def ball_faces(quarter: int) -> np.ndarray:
    """The triangles (F, 3) of a sphere's grid: 2 poles, then 2 quarter - 1 rings of 4 quarter vertices from the top."""
    around, rings = 4 * quarter, 2 * quarter - 1
    k = np.arange(around)
    ring = 2 + np.arange(rings)[:, None] * around
    here, there = ring + k, ring + (k + 1) % around  # (rings, around)
    top = np.stack([np.zeros_like(k), there[0], here[0]], axis=1)
    bottom = np.stack([np.ones_like(k), here[-1], there[-1]], axis=1)
    upper = np.stack([here[:-1], there[:-1], there[1:]], axis=-1).reshape(-1, 3)
    lower = np.stack([here[:-1], there[1:], here[1:]], axis=-1).reshape(-1, 3)
    return np.concatenate([top, upper, lower, bottom])


def powers(values: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """sign(v) |v|^e, (P, n), of values v (n,) that are exactly 0 where they should be, and exponents e (P,)."""
    return np.sign(values) * np.abs(values) ** exponents[:, None]


def superquadrics(exponents: np.ndarray, quarter: int = QUARTER) -> tuple[np.ndarray, np.ndarray]:
    """Closed surfaces in the cube from -1 to 1: exponents (P, 2) -> vertices (P, V, 3), triangles (F, 3).

    (|x|^(2 / e2) + |z|^(2 / e2))^(e2 / e1) + |y|^(2 / e1) = 1: e1 shapes the outline along y, e2 the cut across it.
    The grid is one of angles, whose powers are close to each other where the surface is bent.
    """
    exponents = np.clip(exponents, SHARPEST, ROUNDEST)
    steps = np.arange(4 * quarter)
    wave = np.sin(np.pi / 2 * (steps % quarter) / quarter)  # of one quarter; exact 0 and 1 where they belong,
    rise = np.concatenate([wave[:quarter], [1], wave[1:quarter][::-1]])  # since 1e-17 ** 0.05 is 0.14
    sine = np.concatenate([rise, -rise])
    cosine = np.roll(sine, -quarter)
    x, z = powers(cosine, exponents[:, 1]), powers(sine, exponents[:, 1])  # (P, 4 quarter)
    height = cosine[1 : 2 * quarter]
    y, radius = powers(height, exponents[:, 0]), powers(sine[1 : 2 * quarter], exponents[:, 0])  # (P, rings)
    rings = np.stack(
        np.broadcast_arrays(radius[..., None] * x[:, None], y[..., None], radius[..., None] * z[:, None]), -1
    )
    poles = np.broadcast_to(np.array([[0, 1, 0], [0, -1, 0]], float), (len(exponents), 2, 3))
    return np.concatenate([poles, rings.reshape(len(exponents), -1, 3)], axis=1), ball_faces(quarter)


def shape_mesh(shape: Shape, quarter: int = QUARTER) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A shape's parts as closed surfaces: vertices (V, 3), triangles (F, 3), the part of each triangle (F,).

    Each of the P parts has V / P of the vertices and F / P of the triangles, one part after the other.
    """
    parts = len(shape["box.center"])
    if EXPONENTS in shape:
        grid, faces = superquadrics(np.asarray(shape[EXPONENTS], float), quarter)
    else:
        corners, faces = box_grid()
        grid = np.broadcast_to(corners, (parts, *corners.shape))
    half, turned = np.asarray(shape["box.size"], float) / 2, rotations(np.asarray(shape["box.axes"], float))
    vertices = (grid * half[:, None]) @ turned + np.asarray(shape["box.center"], float)[:, None]
    offsets = np.arange(parts)[:, None, None] * grid.shape[1]
    return vertices.reshape(-1, 3), (faces + offsets).reshape(-1, 3), np.repeat(np.arange(parts), len(faces))


def surface_points(shape: Shape, n: int, rng: np.random.Generator) -> np.ndarray:
    """Points (n, 3) on the surfaces of a shape's parts, also where one is inside another, uniform by area."""
    vertices, faces, _ = shape_mesh(shape)
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).cumsum()
    chosen = np.searchsorted(area, rng.random(n) * area[-1], side="right").clip(max=len(faces) - 1)
    u, v = rng.random((2, n, 1))
    over = u + v > 1
    u, v = np.where(over, 1 - u, u), np.where(over, 1 - v, v)
    return a[chosen] + u * (b - a)[chosen] + v * (c - a)[chosen]


def write_glb(
    shapes: Sequence[Shape],
    path: Path,
    names: Sequence[str] | None = None,
    faded: Sequence[Sequence[bool] | np.ndarray | None] | None = None,
    numbers: Sequence[np.ndarray] | None = None,
) -> None:
    """Write a .glb: a node for each shape, on a square grid, with a named and coloured mesh for each part.

    Args:
        shapes: at least one.
        path: path of the file; a half-written one never has this name.
        names: names of the shapes; by default shape 0, shape 1, ...
        faded: for each shape, a mask of the parts that are pale.
        numbers: for each shape, the numbers by which its parts are named and coloured; by default 0, 1, ...
    """
    import trimesh

    scene = trimesh.Scene()
    meshes = [shape_mesh(shape) for shape in shapes]
    step = 1.2 * max(float(np.ptp(vertices[:, [0, 2]], axis=0).max()) for vertices, _, _ in meshes)
    columns = math.ceil(math.sqrt(len(shapes)))
    for k, (vertices, faces, part) in enumerate(meshes):
        name = f"shape {k}" if names is None else f"{k} {names[k]}"
        place = trimesh.transformations.translation_matrix([k % columns * step, 0, k // columns * step])
        scene.graph.update(frame_to=name, matrix=place)
        parts = int(part[-1]) + 1
        each = vertices.reshape(parts, -1, 3)
        triangles = faces[part == 0]
        called = np.arange(parts) if numbers is None else numbers[k]
        for i, colour in enumerate(linear(part_colours(called, None if faded is None else faded[k]))):
            material = trimesh.visual.material.PBRMaterial(
                baseColorFactor=[*colour.tolist(), 255], metallicFactor=0.0, roughnessFactor=0.8
            )
            visual = trimesh.visual.TextureVisuals(material=material)
            mesh = trimesh.Trimesh(each[i], triangles, visual=visual, process=False)
            label = f"{name} part {called[i]}"
            scene.add_geometry(mesh, node_name=label, geom_name=label, parent_node_name=name)
    content = scene.export(file_type="glb")
    with replacing(path) as beside:
        beside.write_bytes(content)
