"""glTF 2.0, .gltf and .glb: points, triangles, and where the nodes of the scene put them."""

import json
import struct
from collections import defaultdict
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import trimesh
from trimesh.resolvers import FilePathResolver

from data.mesh_files.pieces import MAX_BYTES, MAX_FACES, Piece

# What can be decompressed only by libraries of its own.
COMPRESSION = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression")
TRIANGLES, STRIP, FAN = 4, 5, 6  # the modes of primitives


class Buffers(FilePathResolver):
    """Where the numbers of a glTF are: in the file itself, or in one beside it."""

    OWN = "the chunk of the .glb"

    def __init__(self, path: str, chunk: bytes) -> None:
        super().__init__(path)
        self.chunk = chunk

    def get(self, name: str) -> bytes:
        if name == self.OWN:
            return self.chunk
        try:
            path = self.absolute(unquote(name))
        except ValueError:
            raise ValueError(f"it refers to {name!r}, which is not in its folder") from None
        if not path.is_file():
            raise ValueError(f"it refers to {name!r}, which is missing")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{name} has more than {MAX_BYTES:,} bytes")
        return path.read_bytes()


def read_gltf(path: str) -> list[Piece]:
    """Read a .gltf or .glb: a piece for each node of the scene that has a mesh, where the scene puts it."""
    content = Path(path).read_bytes()
    header, chunk = chunks_of(content) if content[:4] == b"glTF" else (content, None)
    stripped = geometry_only(json.loads(header), chunk is not None)
    scene = trimesh.load_scene(
        BytesIO(json.dumps(stripped).encode()), file_type="gltf", resolver=Buffers(path, chunk or b""), process=False
    )
    pieces: defaultdict[int, list[Piece]] = defaultdict(list)
    faces = 0
    for frame in scene.graph.nodes_geometry:
        transform, name = scene.graph.get(frame)
        points, triangles = piece_of(scene.geometry[name])
        if (faces := faces + len(triangles)) > MAX_FACES:
            raise ValueError(f"it has more than {MAX_FACES:,} triangles")
        node = int(frame.partition("_")[0])  # trimesh gives each further material of a mesh a node NAME_xyz
        pieces[node].append(Piece(points @ transform[:3, :3].T + transform[:3, 3], triangles).check())
    return [joined(pieces[node]) for node in sorted(pieces)]


def piece_of(geometry: Any) -> Piece:
    """A geometry of trimesh; points without faces, and lines, have none."""
    points = np.asarray(geometry.vertices, np.float64).reshape(-1, 3)
    faces = geometry.faces if isinstance(geometry, trimesh.Trimesh) else np.zeros((0, 3))
    return Piece(points, np.asarray(faces, np.int64).reshape(-1, 3))


def joined(pieces: list[Piece]) -> Piece:
    """One piece of several."""
    starts = np.cumsum([0, *(len(points) for points, _ in pieces)])
    faces = [faces + start for (_, faces), start in zip(pieces, starts, strict=False)]
    return Piece(np.concatenate([points for points, _ in pieces]), np.concatenate(faces))


def chunks_of(content: bytes) -> tuple[bytes, bytes]:
    """The header of a .glb and its numbers."""
    chunks: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= len(content):
        length, kind = struct.unpack_from("<I4s", content, at)
        if at + 8 + length > len(content):
            raise ValueError("it ends too early")
        chunks.setdefault(kind, content[at + 8 : at + 8 + length])
        at += 8 + length
    if b"JSON" not in chunks:
        raise ValueError("it has no header")
    return chunks[b"JSON"], chunks.get(b"BIN\0", b"")


def geometry_only(header: dict[str, Any], own: bool) -> dict[str, Any]:
    """A glTF's header without all but points, triangles and nodes; a node's name is its number.

    Args:
        own: the first buffer is in the file itself.

    Raises:
        ValueError: it has something that trimesh would take for zeros, or pass over.
    """
    if not str(header["asset"]["version"]).startswith("2."):
        raise ValueError(f"it is glTF {header['asset']['version']}; 2.0 is read")
    for name in header.get("extensionsRequired", []):
        if name in COMPRESSION:
            raise ValueError(f"it is compressed ({name}), which is not read")
    accessors, meshes, used = header.get("accessors", []), [], set()
    for mesh in header.get("meshes", []):
        primitives = []
        for primitive in mesh["primitives"]:
            mode = primitive.get("mode", TRIANGLES)
            if mode == FAN:
                raise ValueError("it has fans of triangles, which are not read")
            if mode not in (TRIANGLES, STRIP) or "POSITION" not in primitive["attributes"]:
                continue  # lines, points
            kept = {"mode": mode, "attributes": {"POSITION": primitive["attributes"]["POSITION"]}}
            kept |= {"indices": primitive["indices"]} if "indices" in primitive else {}
            primitives.append(kept)
            used |= {kept["attributes"]["POSITION"], *([kept["indices"]] if "indices" in kept else [])}
        meshes.append({"primitives": primitives})
    for k in used:
        if "sparse" in accessors[k] or "bufferView" not in accessors[k] or accessors[k].get("normalized"):
            raise ValueError("its points are stored in a way that is not read (sparse, compressed or normalized)")
    unused = {"count": 0, "componentType": 5126, "type": "SCALAR"}
    buffers = header.get("buffers", [])
    own_buffer = [{"uri": Buffers.OWN}] if own and buffers and "uri" not in buffers[0] else []
    placed = ("children", "matrix", "translation", "rotation", "scale")
    return {
        "asset": {"version": header["asset"]["version"]},
        "scene": header.get("scene", 0),
        "scenes": [{"nodes": scene.get("nodes", [])} for scene in header.get("scenes", [])],
        "nodes": [
            {"name": str(k)}
            | {name: node[name] for name in placed if name in node}
            | ({"mesh": node["mesh"]} if "mesh" in node and meshes[node["mesh"]]["primitives"] else {})
            for k, node in enumerate(header.get("nodes", []))
        ],
        "meshes": meshes,
        "accessors": [accessor if k in used else unused for k, accessor in enumerate(accessors)],
        "bufferViews": header.get("bufferViews", []),
        "buffers": own_buffer + [{"uri": buffer["uri"]} for buffer in buffers[len(own_buffer) :]],
    }
