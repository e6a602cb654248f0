"""A glTF 2.0 as a file, .gltf or .glb: its header, and the arrays of numbers that the header describes."""

import base64
import json
import struct
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np

from runtime.errors import first_line
from shapes.mesh_files.pieces import MAX_BYTES, MAX_POINTS

COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}


class GltfFile:
    """A glTF file: items of its header by kind and number, and arrays by the number of their accessor."""

    def __init__(self, path: str) -> None:
        self.folder = Path(path).parent.resolve()
        content = Path(path).read_bytes()
        self.chunk: bytes | None = None  # the numbers of a .glb, after its header
        if content[:4] == b"glTF":
            content, self.chunk = chunks_of(content)
        self.header = header_of(content)
        self._buffers: dict[int, bytes] = {}
        self._arrays: dict[int, np.ndarray] = {}

    def items(self, kind: str) -> list[dict[str, Any]]:
        """All items of a kind: "mesh", "node", "bufferView"."""
        return self.header.get("meshes" if kind == "mesh" else f"{kind}s", [])

    def item(self, kind: str, k: int) -> dict[str, Any]:
        """The item of a kind and a number.

        Raises:
            ValueError: there is none.
        """
        items = self.items(kind)
        if type(k) is not int or not 0 <= k < len(items):
            raise ValueError(f"it refers to {kind} {k!r} of {len(items):,} (counted from 0)")
        return items[k]

    def accessor(self, k: int, kind: str) -> np.ndarray:
        """The numbers of an accessor, (count, width): whole, or floating where they are normalized.

        Raises:
            ValueError: it is not there, not of this kind, or not in the file.
        """
        accessor = self.item("accessor", k)
        if accessor["type"] != kind:
            raise ValueError(f"accessor {k} is {accessor['type']!r}, where {kind} is needed")
        if k not in self._arrays:
            self._arrays[k] = self._read(k, accessor)
        return self._arrays[k]

    def _read(self, k: int, accessor: dict[str, Any]) -> np.ndarray:
        dtype, width = dtype_of(accessor), WIDTHS[accessor["type"]]
        if (count := natural(accessor, "count")) > MAX_POINTS:
            raise ValueError(f"accessor {k} has {count:,} values, more than {MAX_POINTS:,}")
        if "bufferView" in accessor:
            values = self._view(k, accessor, dtype, count, width)
        elif "sparse" in accessor:
            values = np.zeros((count, width), dtype)
        else:
            raise ValueError(f"accessor {k} is stored in a way that is not read (compressed, without a bufferView)")
        if "sparse" in accessor:
            sparse = accessor["sparse"]
            changed = natural(sparse, "count")
            at = self._view(k, sparse["indices"], dtype_of(sparse["indices"]), changed, 1)[:, 0]
            if not ((at >= 0) & (at < count)).all():
                raise ValueError(f"accessor {k} changes value {at.max()} of {count:,} (counted from 0)")
            values = values.copy()
            values[at.astype(np.int64)] = self._view(k, sparse["values"], dtype, changed, width)
        if accessor.get("normalized") and dtype.kind in "iu":
            values = np.maximum(values / np.iinfo(dtype).max, -1)
        return values

    def _view(self, k: int, source: dict[str, Any], dtype: np.dtype, count: int, width: int) -> np.ndarray:
        """Numbers (count, width) of accessor k, at a place in a view of a buffer."""
        view = self.item("bufferView", source["bufferView"])
        start, size = natural(view, "byteOffset", 0), dtype.itemsize * width
        content = self._buffer(view["buffer"])[start : start + natural(view, "byteLength")]
        at, stride = natural(source, "byteOffset", 0), natural(view, "byteStride", 0) or size
        if count and at + (count - 1) * stride + size > len(content):
            raise ValueError(f"accessor {k} ends beyond the {len(content):,} bytes of its bufferView")
        return np.ndarray((count, width), dtype, content, at if count else 0, (stride, dtype.itemsize))

    def _buffer(self, k: int) -> bytes:
        buffer = self.item("buffer", k)
        if k not in self._buffers:
            self._buffers[k] = self._fetch(k, buffer.get("uri"))
        return self._buffers[k]

    def _fetch(self, k: int, uri: str | None) -> bytes:
        """The bytes of a buffer: of the file itself, or of one in its folder."""
        if uri is None:
            if k or self.chunk is None:
                raise ValueError(f"buffer {k} is not in the file, and no other is named (uri)")
            return self.chunk
        if uri.startswith("data:"):
            kind, _, data = uri.partition(",")
            content = unquote_to_bytes(data)
            try:
                return base64.b64decode(content) if kind.endswith(";base64") else content
            except ValueError as error:
                raise ValueError(f"buffer {k} is no base64: {first_line(error)}") from None
        path = (self.folder / unquote(uri).strip()).resolve()
        if not path.is_relative_to(self.folder):
            raise ValueError(f"it refers to {uri!r}, which is not in its folder")
        if not path.is_file():
            raise ValueError(f"it refers to {uri!r}, which is missing")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{uri} has more than {MAX_BYTES:,} bytes")
        return path.read_bytes()


def natural(item: dict[str, Any], name: str, default: int | None = None) -> int:
    """A whole number of the header that is not negative; one without a default must be there.

    Raises:
        ValueError: it is another value.
    """
    value = item[name] if default is None else item.get(name, default)
    if type(value) is not int or value < 0:
        raise ValueError(f"its header has {name} {value!r}")
    return value


def dtype_of(item: dict[str, Any]) -> np.dtype:
    """The dtype of an accessor's numbers.

    Raises:
        ValueError: its componentType is unknown.
    """
    if (code := item["componentType"]) not in COMPONENTS:
        raise ValueError(f"its header has componentType {code!r}")
    return np.dtype(COMPONENTS[code])


def chunks_of(content: bytes) -> tuple[bytes, bytes]:
    """The header of a .glb and its numbers.

    Raises:
        ValueError: it is damaged, or of another version.
    """
    if len(content) < 12:
        raise ValueError("it has no header")
    if (version := struct.unpack_from("<I", content, 4)[0]) != 2:
        raise ValueError(f"it is glTF {version}, a .glb of version {version}; 2.0 is read")
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


def header_of(text: bytes) -> dict[str, Any]:
    """The header of a glTF file, of its text.

    Raises:
        ValueError: it is no header of glTF 2.
    """
    try:
        header = json.loads(text)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"its header is no JSON: {first_line(error)}") from None
    if not isinstance(header, dict):
        raise ValueError("its header is JSON, and not glTF's")
    version = header.get("asset", {}).get("version", 1.0 if isinstance(header.get("meshes"), dict) else None)
    if version is None:
        raise ValueError("its header does not say which glTF it is (asset.version); 2.0 is read")
    if str(version).partition(".")[0] != "2":
        raise ValueError(f"it is glTF {version}; 2.0 is read")
    return header
