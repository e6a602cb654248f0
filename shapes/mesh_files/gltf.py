"""glTF 2.0, .gltf and .glb: points and triangles, moved as the nodes of the scene say.

Not by trimesh: it silently leaves out skins, weights of morph targets and instances, all of which move points.
"""

import re
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from shapes.mesh_files.gltf_file import GltfFile, natural
from shapes.mesh_files.pieces import MAX_FACES, MeshPiece, strip

INSTANCES, VISIBILITY, LEVELS = "EXT_mesh_gpu_instancing", "KHR_node_visibility", "MSFT_lod"
# Extensions that can be decompressed only by libraries of their own.
COMPRESSION = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression")
# Extensions that a file may require: those read here, and those that neither move, add nor hide points.
READ = {INSTANCES, VISIBILITY, "KHR_mesh_quantization"}
HARMLESS = re.compile(
    r"[A-Z]+_(materials?|textures?|lights?|xmp|audio|packing|techniques|animation_pointer)(_\w+)?"
    r"|(EXT|CESIUM)_(mesh_features|instance_features|structural_metadata|feature_metadata|primitive_outline)"
    r"|EXT_mesh_manifold|KHR_node_(selectability|hoverability)|FB_geometry_metadata|GODOT_single_root|VRM|VRMC_vrm"
)
AT_REST = {"translation": np.zeros(3), "rotation": np.array([0.0, 0, 0, 1]), "scale": np.ones(3)}
TRIANGLES, STRIP, FAN = 4, 5, 6  # the modes of primitives; those before are points and lines


def read_gltf(path: str) -> list[MeshPiece]:
    """The pieces of a .gltf or .glb: one for each node of the scene that has a mesh, and for each instance of it.

    They are where the scene puts them, in the pose that the file has without animations.

    Raises:
        ValueError: the file is at fault.
    """
    try:
        return pieces_of(GltfFile(path))
    except KeyError as error:
        raise ValueError(f"its header lacks {error}") from None
    except (AttributeError, IndexError, OverflowError, TypeError) as error:
        raise ValueError("its header has a value of the wrong kind") from error


def pieces_of(file: GltfFile) -> list[MeshPiece]:
    """The pieces of a glTF, see `read_gltf`.

    Raises:
        ValueError: it is compressed, requires an unknown extension, or has too many triangles.
    """
    for name in file.header.get("extensionsRequired", []):
        if name in COMPRESSION:
            raise ValueError(f"it is compressed ({name}), which is not read")
        if name not in READ and not HARMLESS.fullmatch(name):
            raise ValueError(f"it requires the extension {name}, which is not read")
    if not file.items("scene") and not file.items("node"):
        file.header["nodes"] = [{"mesh": k} for k in range(len(file.items("mesh")))]  # a library of meshes
    worlds = worlds_of(file)
    pieces, faces = [], 0
    for k in visible_nodes(file):
        node = file.item("node", k)
        if "mesh" not in node:
            continue
        count, piece = instance_count(file, k), mesh_of(file, k, worlds)
        if (faces := faces + count * len(piece.faces)) > MAX_FACES:
            raise ValueError(f"it has more than {MAX_FACES:,} triangles")
        if "skin" in node:
            pieces.append(piece)
        elif len(piece.faces):
            pieces += [MeshPiece(moved(piece.points, one), piece.faces) for one in worlds[k] @ instances(file, k)]
    return pieces


# ---- nodes ---------------------------------------------------------------------------------------------------------


def worlds_of(file: GltfFile) -> np.ndarray:
    """The transforms of all nodes from their own frames to the scene's, (N, 4, 4).

    Raises:
        ValueError: the nodes are no trees.
    """
    nodes = file.items("node")
    parents: dict[int, int] = {}
    for k, node in enumerate(nodes):
        for child in node.get("children", []):
            file.item("node", child)
            if parents.setdefault(child, k) != k:
                raise ValueError(f"node {child} is a child of node {parents[child]} and of node {k}")
    worlds, known = np.tile(np.eye(4), (len(nodes), 1, 1)), set()
    ready = [k for k in range(len(nodes)) if k not in parents]
    for k in ready:  # which grows
        worlds[k] = transform_of(nodes[k])
        if k in parents:
            worlds[k] = worlds[parents[k]] @ worlds[k]
        known.add(k)
        ready += dict.fromkeys(nodes[k].get("children", []))
    if len(known) < len(nodes):
        raise ValueError(f"node {min({*range(len(nodes))} - known)} is below itself, or below one that is")
    return worlds


def visible_nodes(file: GltfFile) -> list[int]:
    """The numbers of the visible nodes: of the scene, or all of a file without scenes; without coarser copies."""
    nodes = file.items("node")
    left_out = {k for node in nodes for k in extension(node, LEVELS).get("ids", [])}
    left_out |= {k for k, node in enumerate(nodes) if extension(node, VISIBILITY).get("visible") is False}
    if file.items("scene"):
        waiting = list(file.item("scene", file.header.get("scene", 0)).get("nodes", []))
    else:
        waiting = [*{*range(len(nodes))} - {child for node in nodes for child in node.get("children", [])}]
    seen: set[int] = set()
    while waiting:
        k = waiting.pop()
        node = file.item("node", k)
        if k not in seen and k not in left_out:
            seen.add(k)
            waiting += node.get("children", [])
    return sorted(seen)


def extension(node: dict[str, Any], name: str) -> dict[str, Any]:
    """The content of a node's extension; {} where it has none."""
    return node.get("extensions", {}).get(name, {})


def transform_of(node: dict[str, Any]) -> np.ndarray:
    """The transform from a node's frame to its parent's: (4, 4).

    Raises:
        ValueError: it is not made of as many numbers as it must be.
    """

    def numbers(name: str, default: np.ndarray) -> np.ndarray:
        values = np.array(node.get(name, default), float)
        if values.shape != default.shape:
            raise ValueError(f"a node's {name} is {str(node[name])[:60]}, not {len(default)} numbers")
        return values

    if "matrix" in node:
        return numbers("matrix", np.eye(4).ravel()).reshape(4, 4).T
    parts = [numbers(name, default)[None] for name, default in AT_REST.items()]
    return composed(*parts)[0]


def composed(translation: np.ndarray, rotation: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Transforms (n, 4, 4) of translations (n, 3), quaternions (n, 4) with the real part last, and scales (n, 3)."""
    rotation = np.where(rotation.any(1, keepdims=True), rotation, AT_REST["rotation"])
    made = np.tile(np.eye(4), (len(translation), 1, 1))
    made[:, :3, :3] = Rotation.from_quat(rotation).as_matrix() * scale[:, None]
    made[:, :3, 3] = translation
    return made


def moved(points: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Points (V, 3) moved by a transform (4, 4)."""
    return points @ transform[:3, :3].T + transform[:3, 3]


def instance_count(file: GltfFile, k: int) -> int:
    """The number of instances of a node's mesh.

    Raises:
        ValueError: it cannot be told.
    """
    node = file.item("node", k)
    if INSTANCES not in node.get("extensions", {}):
        return 1
    if "skin" in node:
        raise ValueError(f"node {k} has both a skin and {INSTANCES}, which is not read")
    attributes = extension(node, INSTANCES).get("attributes", {})
    counts = {natural(file.item("accessor", a), "count") for a in attributes.values()}
    if len(counts) != 1:
        raise ValueError(f"node {k} has {INSTANCES} of {' and '.join(map(str, sorted(counts))) or 'no'} instances")
    return counts.pop()


def instances(file: GltfFile, k: int) -> np.ndarray:
    """The transforms of the instances of a node's mesh in its frame, (n, 4, 4); one identity if it has none."""
    attributes, count = extension(file.item("node", k), INSTANCES).get("attributes", {}), instance_count(file, k)
    parts = [
        file.accessor(attributes[name.upper()], f"VEC{len(default)}").astype(float)
        if name.upper() in attributes
        else np.tile(default, (count, 1))
        for name, default in AT_REST.items()
    ]
    return composed(*parts)


# ---- meshes --------------------------------------------------------------------------------------------------------


def mesh_of(file: GltfFile, k: int, worlds: np.ndarray) -> MeshPiece:
    """The triangles of a node's mesh, its morph targets weighed: in the node's frame, or in the scene's if skinned.

    Raises:
        ValueError: a primitive is of an unknown mode, or of points that are not there.
    """
    node = file.item("node", k)
    mesh = file.item("mesh", node["mesh"])
    weights = node.get("weights", mesh.get("weights", []))
    pieces = []
    for primitive in mesh["primitives"]:
        mode, attributes = primitive.get("mode", TRIANGLES), primitive["attributes"]
        if mode not in range(FAN + 1):
            raise ValueError(f"mesh {node['mesh']} has a primitive of mode {mode!r}")
        if mode < TRIANGLES or "POSITION" not in attributes:
            continue
        points = file.accessor(attributes["POSITION"], "VEC3").astype(float)
        faces = MeshPiece(points, triangles_of(file, primitive, mode, len(points))).check().faces
        used, faces = np.unique(faces, return_inverse=True)
        kept = (points + morph(file, primitive, weights, len(points)))[used]
        if "skin" in node:
            kept = posed(kept, *influences(file, attributes, len(points), used), skin_of(file, node, worlds))
        pieces.append(MeshPiece(kept, faces.reshape(-1, 3)))
    return merged(pieces)


def triangles_of(file: GltfFile, primitive: dict[str, Any], mode: int, points: int) -> np.ndarray:
    """The points of each triangle of a primitive: (F, 3).

    Raises:
        ValueError: its indices are no whole numbers, or no whole triangles.
    """
    corners = np.arange(points)
    if "indices" in primitive:
        corners = file.accessor(primitive["indices"], "SCALAR")[:, 0]
        if corners.dtype.kind not in "iu":
            raise ValueError(f"accessor {primitive['indices']} has the points of faces, and is not of whole numbers")
        corners = corners.astype(np.int64)
    if mode == STRIP:
        return strip(corners)
    if mode == FAN:
        return np.stack([np.broadcast_to(corners[:1], len(corners[2:])), corners[1:-1], corners[2:]], axis=1)
    if len(corners) % 3:
        raise ValueError(f"it has triangles of {len(corners):,} corners, which three does not divide")
    return corners.reshape(-1, 3)


def of_points(file: GltfFile, k: int, kind: str, points: int) -> np.ndarray:
    """The values of an accessor, one for each of `points` points.

    Raises:
        ValueError: there are more or fewer.
    """
    values = file.accessor(k, kind)
    if len(values) != points:
        raise ValueError(f"accessor {k} has {len(values):,} values for {points:,} points")
    return values


def morph(file: GltfFile, primitive: dict[str, Any], weights: list[float], points: int) -> np.ndarray:
    """The displacement of each point by the morph targets: (V, 3).

    Raises:
        ValueError: there is a weight for a target that is not there.
    """
    targets = primitive.get("targets", [])
    away = np.zeros((points, 3))
    for k, weight in enumerate(weights):
        if weight and k >= len(targets):
            raise ValueError(f"it has a weight for morph target {k} of {len(targets)} (counted from 0)")
        if weight and "POSITION" in targets[k]:
            away += weight * of_points(file, targets[k]["POSITION"], "VEC3", points)
    return away


def skin_of(file: GltfFile, node: dict[str, Any], worlds: np.ndarray) -> np.ndarray:
    """The transforms of a skin's joints, from the frame of the mesh to the scene's: (J, 4, 4).

    A skin goes where its joints are: the transform of the node that has it has no effect.

    Raises:
        ValueError: it has fewer matrices than joints.
    """
    skin = file.item("skin", node["skin"])
    joints = skin["joints"]
    for k in joints:
        file.item("node", k)
    if "inverseBindMatrices" not in skin:
        return worlds[joints]
    inverse = file.accessor(skin["inverseBindMatrices"], "MAT4").reshape(-1, 4, 4).transpose(0, 2, 1)
    if len(inverse) < len(joints):
        raise ValueError(f"skin {node['skin']} has {len(inverse)} inverseBindMatrices for {len(joints)} joints")
    return worlds[joints] @ inverse[: len(joints)]


def influences(
    file: GltfFile, attributes: dict[str, int], points: int, used: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The joints of each used point and their weights, (V, n) both.

    Raises:
        ValueError: the mesh has no joints.
    """
    sets = sum(name.startswith("JOINTS_") for name in attributes)
    if not sets:
        raise ValueError("it has a skin, and a mesh for it without JOINTS_0")
    joints, weights = (
        np.concatenate([of_points(file, attributes[f"{name}_{k}"], "VEC4", points)[used] for k in range(sets)], axis=1)
        for name in ("JOINTS", "WEIGHTS")
    )
    return joints.astype(np.int64), weights.astype(float)


def posed(points: np.ndarray, joints: np.ndarray, weights: np.ndarray, skin: np.ndarray) -> np.ndarray:
    """Points (V, 3) moved by the joints (V, n) of each, by weight; by the first joint where all weights are 0.

    Raises:
        ValueError: a joint is not there.
    """
    weights[~weights.any(1), 0] = 1
    weights /= weights.sum(1, keepdims=True)
    joints = np.where(weights != 0, joints, 0)
    if joints.size and not 0 <= joints.min() <= joints.max() < len(skin):
        raise ValueError(f"a point hangs on joint {joints.max()} of {len(skin)} (counted from 0)")
    there = np.zeros_like(points)
    for one, weight in zip(joints.T, weights.T, strict=True):
        there += weight[:, None] * (np.einsum("vij,vj->vi", skin[one, :3, :3], points) + skin[one, :3, 3])
    return there


def merged(pieces: list[MeshPiece]) -> MeshPiece:
    """Several pieces as one; of none, an empty one."""
    starts = np.cumsum([0, *(len(points) for points, _ in pieces)])
    faces = [faces + start for (_, faces), start in zip(pieces, starts, strict=False)]
    nothing = MeshPiece(np.zeros((0, 3)), np.zeros((0, 3), np.int64))
    return MeshPiece(
        np.concatenate([nothing.points, *(points for points, _ in pieces)]), np.concatenate([nothing.faces, *faces])
    )
