import base64
import json
import os
import struct
from itertools import product

import numpy as np
import pytest

from runtime.errors import DataError
from shapes import importing
from shapes.importing import TooManyParts, draw_split, find_meshes, shape_of
from shapes.mesh_files import UnreadableMesh, gltf, obj, ply, read_mesh
from tests.shapes.test_boxes import CUBE, any_rotation, rotation

TRIANGLES = [
    *((0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1)),
    *((2, 3, 7), (2, 7, 6), (0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3)),
]
SIDES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]


def cuboid(center, size, turn=None) -> np.ndarray:
    return np.asarray(center) + (CUBE * size) @ (np.eye(3) if turn is None else turn)


RNG = np.random.default_rng(0)
# A table: its top, two legs that touch it at corners and edges, a third apart from all, and a turned rod.
TABLE = [
    cuboid([0, 1.05, 0], [2, 0.1, 1]),
    cuboid([-0.95, 0.5, -0.45], [0.1, 1, 0.1]),
    cuboid([0.95, 0.5, 0.45], [0.1, 1, 0.1]),
    cuboid([0.95, 0.45, -0.45], [0.1, 0.9, 0.1]),
    cuboid([0, 0.3, 0], [1, 0.05, 0.02], any_rotation(RNG)),
]


def corners(shape) -> np.ndarray:
    """Of each part, (P, 8, 3)."""
    axes = shape["box.axes"].astype(float).reshape(-1, 2, 3)
    axes = np.concatenate([axes, np.cross(axes[:, 0], axes[:, 1])[:, None]], 1)
    return shape["box.center"][:, None] + (CUBE * shape["box.size"][:, None]) @ axes


def same(shape, parts) -> bool:
    """Whether a shape is made of these boxes, in this order, given by their corners."""
    found = corners(shape)
    if found.shape != (len(parts), 8, 3):
        return False
    apart = np.abs(found[:, :, None] - np.stack(parts)[:, None]).max(-1)
    return max(apart.min(1).max(), apart.min(2).max()) < 1e-6 * np.abs(np.stack(parts)).max()


def obj_text(parts, before=lambda k: "", faces=TRIANGLES, soup=False, relative=False) -> str:
    """Cuboids one after another; soup: each face has points of its own; relative: they are counted backwards."""
    lines, points = [], 0
    for k, part in enumerate(parts):
        lines.append(before(k))
        if soup:
            for face in faces:
                lines += ["v {!r} {!r} {!r}".format(*map(float, part[c])) for c in face]
                lines.append("f " + " ".join(str(points + j + 1) for j in range(len(face))))
                points += len(face)
        else:
            lines += ["v {!r} {!r} {!r}".format(*map(float, point)) for point in part]
            shift = -8 if relative else points + 1
            lines += ["f " + " ".join(str(c + shift) for c in face) for face in faces]
            points += 8
    return "\n".join(lines) + "\n"


def write(path, text: str | bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def as_is(path, **more):
    return shape_of(path, keep_scale=True, **more)


# ---- parts and boxes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "o part {}", "g part {}", "o table\ng part {}", "o part {}\nusemtl wood\ns off"])
def test_obj_parts_are_objects_groups_or_components(tmp_path, name):
    """Cuboids that touch at corners stay apart, as in the files that ShapeAssembly writes."""
    for faces, relative in product((TRIANGLES, SIDES), (False, True)):
        text = obj_text(TABLE, name.format, faces, relative=relative)
        assert same(as_is(write(tmp_path / "a.obj", "mtllib absent.mtl\n" + text)), TABLE)


def test_components_whose_faces_have_points_of_their_own(tmp_path):
    """What is open is joined where its points are in one place; the parts that are apart stay apart."""
    apart = [TABLE[0], TABLE[3], TABLE[4]]
    assert same(as_is(write(tmp_path / "a.obj", obj_text(apart, soup=True))), apart)
    assert same(as_is(write(tmp_path / "b.obj", obj_text(apart, faces=SIDES, soup=True))), apart)
    whole = np.stack(TRIANGLES)
    points = np.concatenate([TABLE[0], TABLE[1][whole.ravel()]])  # a closed part, and one in pieces that touches it
    faces = [*whole, *np.arange(8, 44).reshape(-1, 3)]
    text = "".join("v {!r} {!r} {!r}\n".format(*map(float, point)) for point in points)
    text += "".join("f {} {} {}\n".format(*(c + 1 for c in face)) for face in faces)
    assert same(as_is(write(tmp_path / "c.obj", text)), TABLE[:2])


def test_a_surface_with_a_seam_is_one_part(tmp_path):
    half = [(0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1)]
    rest = [f for f in TRIANGLES if f not in half]
    points = "".join("v {} {} {}\n".format(*point) for point in [*TABLE[0], *TABLE[0]])
    faces = "".join("f {} {} {}\n".format(*(c + 1 for c in f)) for f in half)
    faces += "".join("f {} {} {}\n".format(*(c + 9 for c in f)) for f in rest)
    assert same(as_is(write(tmp_path / "a.obj", points + faces)), TABLE[:1])


def test_both_sides_of_a_sheet_are_one_part(tmp_path):
    sheet = cuboid([0, 0, 0], [1, 0, 1])[[0, 1, 4, 5]]
    points = "".join("v {} {} {}\n".format(*point) for point in [*sheet, *sheet[[1, 0, 3, 2]] + [0, 0, 1]])
    faces = "f 1 2 4 3\nf 1 3 4 2\nf 5 6 8 7\nf 5 7 8 6\n"
    shape = as_is(write(tmp_path / "a.obj", points + faces))
    assert len(shape["box.size"]) == 1 and np.allclose(shape["box.size"], [[1, 0, 2]])


def test_an_obj_as_it_is_found(tmp_path):
    """Tabs, carriage returns, colours, weights, texture and normals, comments, continued lines, names in Latin-1."""
    text = obj_text(TABLE[:2], "g st\xfchl {}".format).replace("v ", "\tv\t")
    lines = []
    for line in text.splitlines():
        words = line.split()
        if words and words[0] == "f":
            line = f"f {words[1]}/1/1 {words[2]}//1 \\\n {words[3]}/2"
        elif words and words[0] == "v":
            line += " 0.5 0.5 0.5"
        lines += [line, "# comment", "", "vt 0 0", "vn 0 1 0", "l 1 2", "p 1"]
    content = "\r\n".join(lines).replace("\\\n", "\\\r\n").encode("latin-1")
    assert same(as_is(write(tmp_path / "a.OBJ", content)), TABLE[:2])


def ply_file(parts, faces, form="ascii", between="") -> bytes:
    points = np.concatenate(parts)
    polygons = [tuple(c + 8 * k for c in face) for k in range(len(parts)) for face in faces]
    head = f"ply\nformat {form} 1.0\ncomment TextureFile http://example.org/a.png\nelement vertex {len(points)}\n"
    head += "property double x\nproperty double y\nproperty double z\nproperty uchar red\n"
    head += f"element face {len(polygons)}\nproperty list uchar int vertex_indices\n{between}end_header\n"
    more = 1 if between else 0
    if form == "ascii":
        rows = ["{!r} {!r} {!r} 7".format(*map(float, point)) for point in points]
        rows += [" ".join(map(str, [len(face), *face, *[3] * more])) for face in polygons]
        return (head + "\n".join(rows) + "\n").encode()
    order = "<" if "little" in form else ">"
    body = b"".join(struct.pack(order + "3dB", *point, 7) for point in points)
    body += b"".join(
        struct.pack(f"{order}B{len(face)}i{'B' * more}", len(face), *face, *[3] * more) for face in polygons
    )
    return head.encode() + body


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply_parts_are_components(tmp_path, form):
    mixed = [*SIDES[:5], (1, 5, 7), (1, 7, 3)]
    for faces, between in product((TRIANGLES, SIDES, mixed), ("", "property uchar flags\n")):
        assert same(as_is(write(tmp_path / "a.ply", ply_file(TABLE, faces, form, between))), TABLE)


def gltf_file(nodes, roots, pieces=(TABLE[0],), strip=False, **more) -> tuple[dict, bytes]:
    """A glTF's header and its numbers: a mesh for each of the pieces, of two primitives, with points in float32."""
    body = b"".join(np.asarray(piece, "<f4").tobytes() for piece in pieces)
    halves = np.array(TRIANGLES, "<u2")
    at = len(body)
    body += halves.tobytes()
    views = [{"buffer": 0, "byteOffset": 96 * k, "byteLength": 96} for k in range(len(pieces))]
    views += [{"buffer": 0, "byteOffset": at + 36 * k, "byteLength": 36} for k in range(2)]
    accessors = [{"bufferView": k, "componentType": 5126, "count": 8, "type": "VEC3"} for k in range(len(pieces))]
    accessors += [
        {"bufferView": len(pieces) + k, "componentType": 5123, "count": 18, "type": "SCALAR"} for k in range(2)
    ]
    meshes = [
        {
            "primitives": [
                {"attributes": {"POSITION": k, "NORMAL": k}, "indices": len(pieces) + half, "material": half}
                for half in range(2)
            ]
        }
        for k in range(len(pieces))
    ]
    header = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": roots}],
        "nodes": nodes,
        "meshes": meshes,
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(body)}],
        "materials": [{}, {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
        "textures": [{"source": 0}],
        "images": [{"uri": "http://example.org/a.png"}],
        **more,
    }
    return header, body


def glb(header: dict, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(body), b"BIN\0") + body
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


QUATER = [0, np.sin(np.pi / 12), 0, np.cos(np.pi / 12)]  # 30 degrees about y
PLACED = [
    {"name": "root", "translation": [1, 2, 3], "children": [1, 3], "camera": 0},
    {"name": "leg", "mesh": 0, "rotation": QUATER, "scale": [1, 2, 0.5], "children": [2]},
    {"mesh": 1, "name": "leg", "translation": [0, 1, 0]},  # twice the name; in the first one's frame
    {"mesh": 1, "matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, -1, 0, 5, 0, 0, 1], "name": "world"},
    {"mesh": 0, "name": "in no scene"},
]


def placed() -> list[np.ndarray]:
    turn = rotation([0, 1, 0], 30).T
    first = (TABLE[0] * [1, 2, 0.5]) @ turn + [1, 2, 3]
    second = ((TABLE[1] + [0, 1, 0]) * [1, 2, 0.5]) @ turn + [1, 2, 3]
    return [first, second, TABLE[1] * [1, 1, -1] + [6, 2, 3]]


@pytest.mark.parametrize("kind", ["glb", "glb beside", "gltf", "beside"])
def test_gltf_parts_are_nodes_where_the_scene_puts_them(tmp_path, kind):
    """Whatever their names, cameras, and numbers of materials; a node's mesh of several materials is one part."""
    header, body = gltf_file(
        PLACED,
        [0],
        TABLE[:2],
        cameras=[{"type": "perspective", "perspective": {"yfov": 1, "znear": 1, "aspectRatio": 1}}],
    )
    if kind == "glb":
        path = write(tmp_path / "a.glb", glb(header, body))
    else:
        uri = "data:application/octet-stream;base64," + base64.b64encode(body).decode()
        if "beside" in kind:
            uri = "the%20numbers.bin"
            write(tmp_path / "the numbers.bin", body)
        header["buffers"][0]["uri"] = uri
        path = write(tmp_path / "a.gltf", json.dumps(header))
        if kind == "glb beside":
            path = write(tmp_path / "a.glb", glb(header, b""))
    found = as_is(path)
    expected = placed()
    apart = np.abs(corners(found)[:, :, None] - np.stack(expected)[:, None]).max(-1)
    assert len(found["box.size"]) == 3 and apart.min(1).max() < 3e-6 and apart.min(2).max() < 3e-6  # float32, at 6


def test_gltf_of_one_node_is_split_into_components(tmp_path):
    header, body = gltf_file([{"mesh": 0}], [0])
    header["meshes"] = [{"primitives": m["primitives"]} for m in header["meshes"]]
    assert same(as_is(write(tmp_path / "a.glb", glb(header, body))), TABLE[:1])


def test_a_gltf_node_with_lines_places_its_children(tmp_path):
    nodes = [{"mesh": 1, "translation": [1, 2, 3], "children": [1, 2]}, {"mesh": 0}, {"mesh": 0, "scale": [1, 1, 2]}]
    header, body = gltf_file(nodes, [0])
    header["meshes"].append({"primitives": [{"mode": 1, "attributes": {"POSITION": 0}}]})
    expected = [TABLE[0] + [1, 2, 3], TABLE[0] * [1, 1, 2] + [1, 2, 3]]
    assert same(as_is(write(tmp_path / "a.glb", glb(header, body))), expected)


@pytest.mark.parametrize("at", [0.5, 0.5000005, -0.4999995, 1e-7])
@pytest.mark.parametrize("axis", range(3))
def test_points_are_one_by_their_distance(tmp_path, at, axis):
    """Two halves of a square touch wherever they are, by 2e-11 or by 1e-7, and by 1e-5 they do not."""
    for gap, parts in ((0, 1), (2e-11, 1), (1e-7, 1), (1e-5, 2)):
        halves = [np.array([[x, 0, z] for x in (low, high) for z in (-0.5, 0.5)]) for low, high in ((-1, 0), (gap, 1))]
        points = np.roll(np.concatenate(halves), axis, axis=1) + np.roll([at, 0, 0], axis)
        text = "".join("v {!r} {!r} {!r}\n".format(*map(float, point)) for point in points) + "f 1 2 4 3\nf 5 6 8 7\n"
        assert len(as_is(write(tmp_path / "a.obj", text))["box.size"]) == parts


def test_many_points_in_one_place_and_a_stray_one_take_little_memory(tmp_path):
    """Beside a point a million away all else is in one place, and its pairs are hundreds of millions."""
    points = np.random.default_rng(0).random((21_000, 3))
    points[-1] = 1e6
    faces = np.arange(21_000).reshape(-1, 3)
    assert len(importing.components(points, faces)) < 5


# ---- what is done to a shape ---------------------------------------------------------------------------------------


def test_a_shape_stands_on_the_ground_in_the_middle_and_its_longest_side_is_1(tmp_path):
    path = write(tmp_path / "a.obj", obj_text([part * 30 + [7, -400, 9] for part in TABLE]))
    found = corners(shape_of(path)).reshape(-1, 3)
    low, high = found.min(0), found.max(0)
    assert np.allclose((low + high)[[0, 2]], 0, atol=1e-6) and abs(low[1]) < 1e-6 and abs((high - low).max() - 1) < 1e-6
    assert same(shape_of(path), [part / 2 for part in TABLE])


def test_z_up(tmp_path):
    """The front, -y there, is z here."""
    turned = [np.stack([part[:, 0], -part[:, 2], part[:, 1]], axis=1) for part in TABLE]
    assert same(as_is(write(tmp_path / "a.obj", obj_text(turned)), z_up=True), TABLE)


def test_too_many_parts_and_points_as_parts(tmp_path):
    path = write(tmp_path / "a.obj", obj_text(TABLE))
    assert len(as_is(path, max_parts=5)["box.size"]) == 5
    with pytest.raises(TooManyParts):
        as_is(path, max_parts=4)
    text = obj_text(TABLE[:2], "o part {}".format) + "o speck\nv 1 1 1\nv 1 1 1\nv 1 1 1\nf -1 -2 -3\n"
    assert same(as_is(write(tmp_path / "b.obj", text)), TABLE[:2])


# ---- faults --------------------------------------------------------------------------------------------------------

CUBE_TEXT = obj_text(TABLE[:1])
CUBE_PLY = ply_file(TABLE[:1], TRIANGLES)
HEADER, BODY = gltf_file([{"mesh": 0}], [0])


def changed(**more) -> bytes:
    return glb({**HEADER, **more}, BODY)


def accessor(k: int, **more) -> bytes:
    accessors = [dict(a) for a in HEADER["accessors"]]
    accessors[k] |= more
    return changed(accessors=[{name: v for name, v in a.items() if v is not None} for a in accessors])


def with_uri(uri: str) -> bytes:
    return json.dumps({**HEADER, "buffers": [{"uri": uri, "byteLength": len(BODY)}]}).encode()


BROKEN = {
    "empty.obj": (b"", "it is empty"),
    "points.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\n", "it has 3 points and no faces"),
    "picture.obj": (b"\x89PNG\r\n\x1a\n" + bytes(64), "it is a picture"),
    "pointer.obj": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer"),
    "page.obj": (b"<!DOCTYPE html><html>", "it is a web page"),
    "program.obj": (b"\x64\x86\x03\x00" + bytes(range(256)), "it is no text"),
    "nan.obj": (CUBE_TEXT.replace("v 1.0", "v nan"), "a face has a point that is not finite"),
    "far.obj": (CUBE_TEXT.replace("v 1.0", "v 1e300"), "not finite, or beyond 1e"),
    "index.obj": (CUBE_TEXT + "f 1 2 9\nf 3 2 1\n", "line 22 is no face: 'f 1 2 9' has point 9 of 8"),
    "zero.obj": (CUBE_TEXT + "f 0 1 2\n", "line 22 is no face: 'f 0 1 2'"),
    "before.obj": ("v 0 0 0\nf -2 -1 -1\n", "line 2 is no face"),
    "word.obj": (CUBE_TEXT + "f 1 2 x\n", "is no face: 'f 1 2 x'"),
    "comma.obj": ("v 0,5 1,0 2,0\n", "line 1 is no point"),
    "two.obj": ("v 0.5 1\n", "line 1 is no point"),
    "dot.obj": ("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", "has no extent"),
    "empty.ply": (b"", "it is empty"),
    "cloud.ply": (CUBE_PLY.split(b"element face")[0] + b"end_header\n" + b"0 0 0 1\n" * 8, "8 points and no faces"),
    "short.ply": (CUBE_PLY[:-10], "it ends too early"),
    "cut.ply": (CUBE_PLY[:60], "its header"),
    "bytes.ply": (ply_file(TABLE[:1], TRIANGLES, "binary_little_endian")[:-3], "it ends too early"),
    "bomb.ply": (CUBE_PLY.replace(b"face 12", b"face 999999999999"), "5,000,000 faces"),
    "many.ply": (CUBE_PLY.replace(b"vertex 8", b"vertex 14999999"), "it ends too early"),
    "index.ply": (CUBE_PLY.replace(b"3 1 7 3\n", b"3 1 7 8\n"), "a face has point 8, of 8"),
    "minus.ply": (CUBE_PLY.replace(b"3 1 7 3\n", b"3 1 7 -3\n"), "a face has point -3, of 8"),
    "nan.ply": (CUBE_PLY.replace(b"\n1.0 ", b"\nnan "), "not finite"),
    "list.ply": (CUBE_PLY.replace(b"\n3 0 1 3\n", b"\n-3 0 1 3\n"), "face 0 (counted from 0) has a list of -3"),
    "wrong.ply": (CUBE_PLY.replace(b"vertex_indices", b"corners"), "lack vertex_indices"),
    "format.ply": (CUBE_PLY.replace(b"ascii", b"morse"), "its header has the line 'format morse 1.0'"),
    "axes.ply": (CUBE_PLY.replace(b"double x", b"double w"), "its points lack x"),
    "empty.glb": (b"", "it is empty"),
    "short.glb": (changed()[:-50], "it ends too early"),
    "head.glb": (changed()[:8], "it has no header"),
    "text.glb": (b"no glTF", "its header is no JSON: "),
    "scene.glb": (changed(scenes=[{}]), "it has no faces"),
    "draco.glb": (changed(extensionsRequired=["KHR_draco_mesh_compression"]), "it is compressed"),
    "sparse.glb": (accessor(0, sparse={}), "its header lacks 'count'"),
    "huge.glb": (accessor(0, bufferView=None, count=10**12), "accessor 0 has 1,000,000,000,000 values, more than"),
    "zeros.glb": (accessor(0, bufferView=None), "stored in a way that is not read"),
    "count.glb": (accessor(0, count=9), "accessor 0 ends beyond the 96 bytes of its bufferView"),
    "view.glb": (accessor(0, bufferView=99), "it refers to bufferView 99 of 3"),
    "index.glb": (glb(HEADER, BODY[:96] + b"\xff\x00" + BODY[98:]), "a face has point 255, of 8"),
    "nan.glb": (glb(HEADER, struct.pack("<f", np.nan) + BODY[4:]), "not finite"),
    "lines.glb": (changed(meshes=[{"primitives": [{"mode": 1, "attributes": {"POSITION": 0}}]}]), "it has no faces"),
    "mesh.glb": (changed(nodes=[{"mesh": 7}]), "it refers to mesh 7 of 1"),
    "circle.glb": (changed(nodes=[{"children": [1]}, {"children": [0]}]), "node 0 is below itself"),
    "version.gltf": (json.dumps({**HEADER, "asset": {"version": "1.0"}}).encode(), "it is glTF 1.0; 2.0 is read"),
    "list.gltf": (b"[]", "its header is JSON, and not glTF's"),
    "remote.gltf": (with_uri("http://example.org/a.bin"), "it refers to 'http://example.org/a.bin', which is missing"),
    "outside.gltf": (with_uri("../outside.bin"), "it refers to '../outside.bin', which is not in its folder"),
    "absent.gltf": (with_uri("absent.bin"), "it refers to 'absent.bin', which is missing"),
    "nesting.gltf": (b"[" * 100_000, "its header is nested too deeply"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_mesh_is_refused_in_one_line(tmp_path, name, recwarn, capfd):
    content, reason = BROKEN[name]
    path = write(tmp_path / "folder" / name, content)
    write(tmp_path / "outside.bin", BODY)
    with pytest.raises(UnreadableMesh) as raised:
        shape_of(path)
    said = str(raised.value)
    assert said.startswith(f"mesh {path} ") and reason in said and "\n" not in said and len(said) < len(path) + 200
    assert not recwarn.list and capfd.readouterr() == ("", "")


def test_files_that_are_too_large_are_refused(tmp_path, monkeypatch):
    sparse = tmp_path / "sparse.obj"
    with open(sparse, "wb") as file:
        file.truncate(2**29 + 1)
    with pytest.raises(UnreadableMesh, match="it has 536,870,913 bytes, more than 536,870,912"):
        read_mesh(str(sparse))
    for module in (obj, ply, gltf):
        monkeypatch.setattr(module, "MAX_FACES", 11)
    for name, content in {"a.obj": CUBE_TEXT, "a.ply": CUBE_PLY, "a.glb": changed()}.items():
        with pytest.raises(UnreadableMesh, match="11"):
            read_mesh(write(tmp_path / name, content))


def test_many_copies_of_one_mesh_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(gltf, "MAX_FACES", 100)
    header, body = gltf_file([{"mesh": 0}] * 20, list(range(20)))
    with pytest.raises(UnreadableMesh, match="more than 100 triangles"):
        read_mesh(write(tmp_path / "a.glb", glb(header, body)))


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.obj")
    (tmp_path / "b.obj").symlink_to("absent")
    with pytest.raises(UnreadableMesh, match=r"a\.obj cannot be read: it is no regular file"):
        read_mesh(str(tmp_path / "a.obj"))
    with pytest.raises(UnreadableMesh, match=r"b\.obj cannot be read: No such file"):
        read_mesh(str(tmp_path / "b.obj"))
    assert [os.path.basename(path) for path in find_meshes(tmp_path).paths] == ["a.obj", "b.obj"]


def test_a_machine_at_fault_is_no_damaged_mesh(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setitem(importing.read_mesh.__globals__["READERS"], ".obj", fail)
    with pytest.raises(DataError, match="Input/output error") as raised:
        read_mesh(write(tmp_path / "a.obj", CUBE_TEXT))
    assert not isinstance(raised.value, UnreadableMesh)


# ---- folders and splits --------------------------------------------------------------------------------------------


def test_classes_are_sub_folders_by_name(tmp_path):
    for name in ("table/b.obj", "table/deep/a.glb", "chair/c.PLY", "loose.obj", "table/wood.mtl", "textures/a.png"):
        write(tmp_path / name, "")
    for name in (".hidden.obj", "chair/.DS_Store", "README"):
        write(tmp_path / name, "")
    found = find_meshes(tmp_path)
    assert [os.path.relpath(path, tmp_path) for path in found.paths] == [
        "chair/c.PLY",
        "table/b.obj",
        "table/deep/a.glb",
    ]
    assert found.class_names == ["chair", "table"] and found.labels == [0, 1, 1]
    assert found.others == {".mtl": 1, ".png": 1, "without a suffix": 1}
    assert found.notes == [
        f"1 meshes directly in {tmp_path} are in the folder of no class: left out",
        "folders without meshes are no classes: textures",
    ]


def test_meshes_directly_in_the_folder_are_one_class(tmp_path, monkeypatch):
    write(tmp_path / "chairs" / "a.obj", "")
    write(tmp_path / "chairs" / "textures" / "a.png", "")
    monkeypatch.chdir(tmp_path / "chairs")
    for folder in (tmp_path / "chairs", importing.Path(".")):
        found = find_meshes(folder)
        assert found.class_names == ["chairs"] and found.labels == [0] and not found.notes


def test_names_that_are_not_utf_8(tmp_path):
    write(tmp_path / os.fsdecode(b"st\xfchle") / "a.obj", "")
    assert find_meshes(tmp_path).class_names == [r"st\xfchle"]


@pytest.mark.parametrize("shares", [(0.85, 0.05, 0.1), (1, 0, 0), (0, 0, 1), (1 / 3, 1 / 3, 1 / 3)])
def test_a_split_has_its_shares_of_every_class(shares):
    labels = [0] * 200 + [1] * 100 + [2] * 20 + [3]
    split = np.array(draw_split(labels, shares, seed=0))
    for name, share in zip(importing.SPLITS, shares, strict=True):
        assert abs((split == name).sum() - share * len(labels)) <= 1
        for label, count in enumerate(np.bincount(labels)):
            assert abs((split[np.array(labels) == label] == name).sum() - share * count) <= 2
    assert split.tolist() == draw_split(labels, shares, seed=0)
    assert 1 in shares or split.tolist() != draw_split(labels, shares, seed=1)
