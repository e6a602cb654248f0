"""What of the formats moves, hides or adds points; what text is written in; what is said of a file that is at fault."""

import json
import struct

import numpy as np
import pytest

from shapes.mesh_files import UnreadableMesh, read_mesh
from tests.shapes.test_boxes import rotation
from tests.shapes.test_importing import (
    CUBE_TEXT,
    QUATER,
    SIDES,
    TABLE,
    TRIANGLES,
    as_is,
    glb,
    gltf_file,
    obj_text,
    ply_file,
    same,
    write,
)

TOP = TABLE[0]
TURN = rotation([0, 1, 0], 30).T


def shifted(points, *by) -> np.ndarray:
    return points + np.array(by)


class Draft:
    """A glTF to which arrays are added."""

    def __init__(self, nodes=({"mesh": 0},), roots=(0,), **more):
        self.header, self.body = gltf_file([dict(node) for node in nodes], list(roots), **more)

    def add(self, values, kind, dtype="<f4", **more) -> int:
        """The number of a new accessor."""
        codes = {"i1": 5120, "u1": 5121, "<i2": 5122, "<u2": 5123, "<u4": 5125, "<f4": 5126}
        self.header["accessors"].append(
            {
                "bufferView": self.view(values, dtype),
                "componentType": codes[dtype],
                "count": len(values),
                "type": kind,
                **more,
            }
        )
        return len(self.header["accessors"]) - 1

    def view(self, values, dtype) -> int:
        self.body += bytes(-len(self.body) % 4)
        content = np.asarray(values, dtype).tobytes()
        self.header["bufferViews"].append({"buffer": 0, "byteOffset": len(self.body), "byteLength": len(content)})
        self.body += content
        return len(self.header["bufferViews"]) - 1

    def primitive(self, **more) -> dict:
        """The first one, the whole cuboid, in place of both halves."""
        made = {"attributes": {"POSITION": 0}, "indices": self.add(np.ravel(TRIANGLES), "SCALAR", "<u2"), **more}
        self.header["meshes"][0] = {"primitives": [made]}
        return made

    def read(self, tmp_path, name="a.glb"):
        return as_is(write(tmp_path / name, glb(self.header, self.body)))

    def refused(self, tmp_path) -> str:
        return refused(tmp_path, "a.glb", glb(self.header, self.body))


def refused(tmp_path, name, content) -> str:
    path = write(tmp_path / name, content)
    with pytest.raises(UnreadableMesh) as raised:
        as_is(path)
    said = str(raised.value).partition(" cannot be read: ")[2]
    assert "\n" not in said and "Error" not in said
    return said


# ---- glTF: extensions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MSFT_lod", "CESIUM_RTC", "KHR_gaussian_splatting", "KHR_meshopt_compression", "X_y"])
def test_a_required_extension_that_is_not_known_is_refused_by_name(tmp_path, name):
    assert name in Draft(extensionsRequired=["KHR_materials_unlit", name]).refused(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *("KHR_materials_unlit", "KHR_materials_pbrSpecularGlossiness", "KHR_texture_transform", "KHR_texture_basisu"),
        *("EXT_texture_webp", "KHR_lights_punctual", "KHR_xmp_json_ld", "KHR_mesh_quantization", "MSFT_texture_dds"),
        *("EXT_structural_metadata", "VRMC_materials_mtoon", "KHR_animation_pointer", "ADOBE_materials_clearcoat"),
    ],
)
def test_what_does_not_move_points_may_be_required(tmp_path, name):
    assert same(Draft(extensionsRequired=[name]).read(tmp_path), [TOP])


@pytest.mark.parametrize("required", [[], ["EXT_mesh_gpu_instancing"]])
def test_instances_are_parts_where_they_are(tmp_path, required):
    draft = Draft([{"mesh": 0, "translation": [0, 5, 0], "scale": [1, 2, 1]}], extensionsRequired=required)
    attributes = {
        "TRANSLATION": draft.add([[0, 0, 0], [3, 0, 0], [6, 1, 0]], "VEC3"),
        "ROTATION": draft.add([[0, 0, 0, 1], QUATER, [0, 0, 0, 1]], "VEC4"),
        "SCALE": draft.add([[1, 1, 1], [1, 1, 1], [0.5, 1, 2]], "VEC3"),
    }
    draft.header["nodes"][0]["extensions"] = {"EXT_mesh_gpu_instancing": {"attributes": attributes}}
    inside = [TOP, TOP @ TURN + [3, 0, 0], TOP * [0.5, 1, 2] + [6, 1, 0]]
    assert same(draft.read(tmp_path), [part * [1, 2, 1] + [0, 5, 0] for part in inside])
    draft.header["accessors"][attributes["SCALE"]]["count"] = 2
    assert "EXT_mesh_gpu_instancing of 2 and 3 instances" in draft.refused(tmp_path)


def test_instances_of_normalized_numbers_and_of_none(tmp_path):
    draft = Draft()
    turned = draft.add([[0, 127, 0, 127], [0, 0, 0, 127]], "VEC4", "i1", normalized=True)
    node = draft.header["nodes"][0]
    node["extensions"] = {"EXT_mesh_gpu_instancing": {"attributes": {"ROTATION": turned}}}
    assert same(draft.read(tmp_path), [TOP @ rotation([0, 1, 0], 90).T, TOP])
    node["extensions"] = {"EXT_mesh_gpu_instancing": {}}
    assert "of no instances" in draft.refused(tmp_path)
    node["skin"] = 0
    assert "both a skin and EXT_mesh_gpu_instancing" in draft.refused(tmp_path)


def test_coarser_copies_and_hidden_nodes_are_not_there(tmp_path):
    nodes = [
        {"mesh": 0, "extensions": {"MSFT_lod": {"ids": [1]}}},
        {"mesh": 0},
        {"children": [3], "extensions": {"KHR_node_visibility": {"visible": False}}},
        {"mesh": 0},
    ]
    for draft in (Draft(nodes, [0, 1, 2]), Draft(nodes)):
        draft.header["scenes"] = draft.header["scenes"] if len(draft.header["scenes"][0]["nodes"]) > 1 else []
        assert same(draft.read(tmp_path), [TOP])


# ---- glTF: skins, morph targets, numbers ---------------------------------------------------------------------------


def skinned(weights, dtype="<f4", **more) -> Draft:
    """A cuboid that hangs on two joints; its own node is far away."""
    nodes = [
        {"children": [1, 2, 3], "translation": [0, 0, 1]},
        {"translation": [0, 1, 0]},
        {"rotation": QUATER, "scale": [2, 2, 2]},
        {"mesh": 0, "skin": 0, "translation": [500, 0, 0], "scale": [100, 100, 100]},
    ]
    draft = Draft(nodes)
    primitive = draft.primitive()
    joints = draft.add([[1, 0, 0, 0]] * 8, "VEC4", "u1")
    primitive["attributes"] |= {"JOINTS_0": joints, "WEIGHTS_0": draft.add(weights, "VEC4", dtype, **more)}
    bind = np.eye(4)
    bind[:3, 3] = [0, -1, 0]
    draft.header["skins"] = [{"joints": [1, 2], "inverseBindMatrices": draft.add([bind.T, np.eye(4)], "MAT4")}]
    return draft


FIRST, SECOND = shifted(TOP, 0, 0, 1), shifted((TOP * 2) @ TURN, 0, 0, 1)  # where the joints take the cuboid


@pytest.mark.parametrize(
    "weights, dtype, expected",
    [
        ([0, 1, 0, 0], "<f4", FIRST),
        ([1, 0, 0, 0], "<f4", SECOND),
        ([0.25, 0.75, 0, 0], "<f4", 0.25 * SECOND + 0.75 * FIRST),
        ([51, 204, 0, 0], "u1", 0.2 * SECOND + 0.8 * FIRST),
        ([0, 0, 0, 0], "<f4", SECOND),  # of weight 0: the first joint's
    ],
)
def test_a_skin_is_where_its_joints_are(tmp_path, weights, dtype, expected):
    draft = skinned([weights] * 8, dtype, **({"normalized": True} if dtype == "u1" else {}))
    path = write(tmp_path / "a.glb", glb(draft.header, draft.body))
    [(points, _)] = read_mesh(path)
    np.testing.assert_allclose(points, expected, atol=1e-6)


def test_a_skin_that_is_not_whole_is_refused(tmp_path):
    draft = skinned([[1, 0, 0, 0]] * 8)
    draft.header["skins"][0]["joints"] = [1]
    assert "a point hangs on joint 1 of 1" in draft.refused(tmp_path)
    draft.header["skins"][0]["joints"] = [1, 2, 0]
    assert "skin 0 has 2 inverseBindMatrices for 3 joints" in draft.refused(tmp_path)
    draft.header["skins"][0]["joints"] = [1, 12]
    assert "it refers to node 12 of 4" in draft.refused(tmp_path)
    draft = skinned([[0, 1, 0, 0]] * 7)
    assert "has 7 values for 8 points" in draft.refused(tmp_path)
    attributes = draft.header["meshes"][0]["primitives"][0]["attributes"]
    del attributes["WEIGHTS_0"]
    assert "its header lacks 'WEIGHTS_0'" in draft.refused(tmp_path)
    del attributes["JOINTS_0"]
    assert "without JOINTS_0" in draft.refused(tmp_path)


@pytest.mark.parametrize(
    "mesh, node, up",
    [(None, None, 0), ([0.5, 0], None, 1), ([0.5, 1], None, 1), ([1, 0], [0.25, 0], 0.5), ([1], [0, 0], 0)],
)
def test_targets_of_a_mesh_move_it_by_their_weights(tmp_path, mesh, node, up):
    """Those of the node count where it has some."""
    draft = Draft()
    targets = [{"POSITION": draft.add([[0, 2, 0]] * 8, "VEC3")}, {"NORMAL": 0}]
    draft.primitive(targets=targets)
    if mesh is not None:
        draft.header["meshes"][0]["weights"] = mesh
    if node is not None:
        draft.header["nodes"][0]["weights"] = node
    assert same(draft.read(tmp_path), [shifted(TOP, 0, up, 0)])
    draft.header["nodes"][0]["weights"] = [0, 0, 1]
    assert "a weight for morph target 2 of 2" in draft.refused(tmp_path)


def test_sparse_points(tmp_path):
    """Over others, and over zeros."""
    moved = TOP.copy()
    moved[[1, 3, 5, 7], 1] += 2
    draft = Draft()
    at, new = draft.view([1, 3, 5, 7], "<u2"), draft.view(moved[1::2], "<f4")
    sparse = {"count": 4, "indices": {"bufferView": at, "componentType": 5123}, "values": {"bufferView": new}}
    draft.header["accessors"][0]["sparse"] = sparse
    [(points, _)] = read_mesh(write(tmp_path / "a.glb", glb(draft.header, draft.body)))
    np.testing.assert_allclose(np.unique(points, axis=0), np.unique(moved.astype("<f4"), axis=0))
    del draft.header["accessors"][0]["bufferView"]
    [(points, _)] = read_mesh(write(tmp_path / "a.glb", glb(draft.header, draft.body)))
    assert (points == 0).all(1).sum() >= 4 and {*map(tuple, points.round(5))} == {
        (0, 0, 0),
        *map(tuple, moved[1::2].round(5)),
    }
    sparse["indices"]["bufferView"] = draft.view([1, 3, 5, 8], "<u2")
    assert "accessor 0 changes value 8 of 8" in draft.refused(tmp_path)


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", "<u2"])
@pytest.mark.parametrize("normalized", [True, False])
def test_quantized_points(tmp_path, dtype, normalized):
    """Whole numbers, or shares of the largest; beside each other, or with gaps between."""
    most = np.iinfo(dtype).max
    low = 0 if "u" in dtype else -most
    grid = np.where(TOP - TOP.mean(0) > 0, most, low)
    unit = 1 if normalized else most
    low = low / most * unit
    scale = np.ptp(TOP, axis=0) / (unit - low)
    draft = Draft([{"mesh": 0, "scale": scale.tolist(), "translation": (TOP.min(0) - low * scale).tolist()}])
    spread = np.zeros((8, 4), dtype)
    spread[:, :3] = grid
    draft.primitive()["attributes"]["POSITION"] = k = draft.add(spread, "VEC3", dtype, normalized=normalized)
    draft.header["bufferViews"][draft.header["accessors"][k]["bufferView"]]["byteStride"] = spread.itemsize * 4
    draft.header["extensionsRequired"] = ["KHR_mesh_quantization"]
    [(points, _)] = read_mesh(write(tmp_path / "a.glb", glb(draft.header, draft.body)))
    np.testing.assert_allclose(points, TOP, atol=1e-6)


# A cuboid's six sides as strips, which a corner twice leads from one to the next; as fans, one primitive each.
STRIP = [c for a, b, c, d in SIDES for c in (a, a, b, d, c, c)]


def test_strips_and_fans_of_a_gltf(tmp_path):
    draft = Draft()
    draft.primitive(mode=5)["indices"] = draft.add(STRIP, "SCALAR", "<u2")
    [(points, faces)] = read_mesh(write(tmp_path / "a.glb", glb(draft.header, draft.body)))
    sides = [sorted(face) for a, b, c, d in SIDES for face in ((a, b, d), (b, c, d))]
    assert np.allclose(points, TOP) and np.sort(faces, axis=1).tolist() == sides
    fans = [{"mode": 6, "attributes": {"POSITION": 0}, "indices": draft.add(s, "SCALAR", "<u2")} for s in SIDES]
    draft.header["meshes"][0]["primitives"] = fans
    assert same(draft.read(tmp_path), [TOP])
    draft.header["meshes"][0]["primitives"] = [*fans, {"mode": 1, "attributes": {"POSITION": 0}}]
    assert same(draft.read(tmp_path), [TOP])
    fans[0]["mode"] = 7
    assert "mesh 0 has a primitive of mode 7" in draft.refused(tmp_path)
    fans[0]["mode"] = 4
    assert "triangles of 4 corners" in draft.refused(tmp_path)
    draft.header["meshes"][0]["primitives"][0] = {
        "mode": 4,
        "attributes": {"POSITION": 0},
        "indices": draft.add([0, 1, 2], "SCALAR"),
    }
    assert "is not of whole numbers" in draft.refused(tmp_path)


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_strips_of_a_ply(tmp_path, form):
    """Whether -1 or a corner twice leads from one to the next, both parts of a strip stay two, seen from outside."""
    parts = [TABLE[0], TABLE[3]]
    restarted = [c for c0, c1, c2, c3 in SIDES for c in (c0, c1, c3, c2, -1)]
    for corners in (restarted, STRIP):
        second = [c + 8 if c >= 0 else c for c in corners]
        corners = [*corners, *second][1 if corners == STRIP else 0 :]  # a corner twice at the beginning turns all round
        path = write(tmp_path / "a.ply", ply_with_strips(parts, corners, form))
        assert same(as_is(path), parts)
        [(points, faces)] = read_mesh(path)
        a, b, c = (points[faces[:, k]] for k in range(3))
        middle = np.repeat([part.mean(0) for part in parts], 12, axis=0)
        outward = ((a + b + c) / 3 - middle) * np.cross(b - a, c - a)
        assert len(faces) == 24 and (outward.sum(1) > 0).all()
    [(_, faces)] = read_mesh(write(tmp_path / "b.ply", ply_with_strips(parts, [0, 1, 3, -1, 3, 8], form)))
    assert faces.tolist() == [[0, 1, 3]]


def ply_with_strips(parts, corners, form) -> bytes:
    points = np.concatenate(parts)
    head = f"ply\nformat {form} 1.0\nelement vertex {len(points)}\n"
    head += "property float x\nproperty float y\nproperty float z\nelement tristrips 1\n"
    head += "property list int int vertex_indices\nend_header\n"
    if form == "ascii":
        rows = [" ".join(map(str, point)) for point in points.tolist()]
        return (head + "\n".join([*rows, f"{len(corners)} " + " ".join(map(str, corners))])).encode()
    order = "<" if "little" in form else ">"
    return (
        head.encode()
        + points.astype(order + "f4").tobytes()
        + np.array([len(corners), *corners], order + "i4").tobytes()
    )


# ---- glTF: what refers to what -------------------------------------------------------------------------------------


def test_a_file_without_scenes_is_a_library(tmp_path):
    """All of its nodes, where they are; all of its meshes where it has no nodes."""
    draft = Draft([{"children": [1], "translation": [1, 2, 3]}, {"mesh": 0}, {"mesh": 0}], [2])
    assert same(draft.read(tmp_path), [TOP])
    draft.header["scenes"] = []
    assert same(draft.read(tmp_path), [shifted(TOP, 1, 2, 3), TOP])
    del draft.header["scenes"], draft.header["scene"]
    assert same(draft.read(tmp_path), [shifted(TOP, 1, 2, 3), TOP])
    del draft.header["nodes"]
    assert same(draft.read(tmp_path), [TOP])


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda h: h["nodes"][0].update(mesh=-1), "mesh -1 of 1"),
        (lambda h: h["nodes"][0].update(mesh="Cube"), "mesh 'Cube' of 1"),
        (lambda h: h["nodes"][0].update(children=[4]), "node 4 of 1"),
        (lambda h: h["scenes"][0].update(nodes=[-2]), "node -2 of 1"),
        (lambda h: h.update(scene=3), "scene 3 of 1"),
        (lambda h: h["nodes"][0].update(skin=0), "without JOINTS_0"),
        (lambda h: h["meshes"][0]["primitives"][0].update(indices=-1), "accessor -1 of 3"),
        (lambda h: h["meshes"][0]["primitives"][0]["attributes"].update(POSITION=5), "accessor 5 of 3"),
        (lambda h: h["meshes"][0].pop("primitives"), "its header lacks 'primitives'"),
        (lambda h: h["bufferViews"][0].update(buffer=2), "buffer 2 of 1"),
        (lambda h: h["bufferViews"][0].update(byteOffset=-4), "its header has byteOffset -4"),
        (lambda h: h["accessors"][0].update(componentType=1), "its header has componentType 1"),
        (lambda h: h["accessors"][0].update(type="VEC2"), "accessor 0 is 'VEC2', where VEC3 is needed"),
        (lambda h: h["buffers"].insert(0, {"byteLength": 4, "uri": "data:;base64,A"}), "buffer 0 is no base64"),
        (lambda h: h["buffers"].insert(0, {"uri": "data:,short"}), "accessor 0 ends beyond the 5 bytes"),
        (lambda h: h.update(nodes=3), "its header has a value of the wrong kind"),
        (lambda h: h["nodes"][0].update(matrix=[1, 0]), "a node's matrix is [1, 0], not 16 numbers"),
        (lambda h: h.update(nodes=[{"children": [1, 2]}, {"children": [2]}, {}]), "child of node 0 and of node 1"),
        (lambda h: h.update(nodes=[{"children": [0]}]), "node 0 is below itself"),
        (lambda h: h.update(nodes=[{}, {"children": [2]}, {"children": [1]}]), "node 1 is below itself"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, change, reason):
    draft = Draft()
    change(draft.header)
    assert reason in draft.refused(tmp_path)


def test_other_versions_are_named(tmp_path):
    one = json.dumps({"asset": {"version": "1.0"}, "meshes": {"a": {}}})
    for name, content, reason in (
        ("a.gltf", one, "it is glTF 1.0; 2.0 is read"),
        ("b.gltf", '{"meshes": {"a": {}}}', "it is glTF 1.0"),
        ("c.gltf", '{"asset": {"version": 3}}', "it is glTF 3;"),
        ("d.gltf", "{}", "does not say which glTF it is (asset.version)"),
        ("e.glb", struct.pack("<4s4I", b"glTF", 1, 20, 0, 0), "it is glTF 1, a .glb of version 1"),
        ("f.glb", struct.pack("<4sII", b"glTF", 2, 12), "it has no header"),
    ):
        assert reason in refused(tmp_path, name, content)


# ---- text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_marks_encodings_and_line_endings(tmp_path, encoding, ending):
    draft = Draft()
    draft.header["buffers"][0]["uri"] = "a.bin"
    write(tmp_path / "a.bin", draft.body)
    for name, text in {
        "a.obj": "# M\u00f6bel\n" + CUBE_TEXT + "v 0 9 0\n",
        "a.ply": ply_file([TOP], SIDES).decode(),
        "a.gltf": json.dumps(draft.header, indent=1),
    }.items():
        path = write(tmp_path / name, text.replace("\n", ending).encode(encoding))
        assert same(as_is(path), [TOP])


def test_a_mark_before_a_binary_ply(tmp_path):
    content = ply_file([TOP], TRIANGLES, "binary_little_endian")
    assert same(as_is(write(tmp_path / "a.ply", b"\xef\xbb\xbf" + content)), [TOP])
    assert "saved as UTF-16 text" in refused(tmp_path, "b.ply", content.decode("latin-1").encode("utf-16"))


def test_comments_of_an_obj_begin_anywhere(tmp_path):
    lines = [f"{line}# 7" if k % 2 else f"{line} #7 8" for k, line in enumerate(CUBE_TEXT.splitlines())]
    text = "#o no\n# C:\\models\\\n" + "\n".join(lines) + "\ng legs # of wood\ng legs\n"
    assert same(as_is(write(tmp_path / "a.obj", text)), [TOP])


def test_each_o_begins_an_object_and_a_group_goes_on(tmp_path):
    apart = [TABLE[0], TABLE[3], TABLE[4]]
    for before in ("o leg", "o", "o seat\no leg", "g all\no leg"):
        assert same(as_is(write(tmp_path / "a.obj", obj_text(apart, lambda k, before=before: before))), apart)
    text = obj_text(apart, "g leg {}".format) + "g leg 0\nf 4 5 6\n"
    assert len(read_mesh(write(tmp_path / "b.obj", text))) == 3
    assert len(read_mesh(write(tmp_path / "b.obj", text + "o other\ng leg 0\nf 4 5 6\n"))) == 4
    text = obj_text(apart, ["g st\u00e0", "g st\u00c5", "g st"].__getitem__)  # whose last bytes are spaces in Latin-1
    assert same(as_is(write(tmp_path / "c.obj", text)), apart)


def test_what_is_skipped_in_an_obj_is_known(tmp_path):
    more = "mtllib a b.mtl\nusemtl x\ns off\nvt 0 0\nvn 0 1 0\nvp 0 0\nl 1 2\np 1\nlod 2\ncurv 0 1 1 2\nend\n"
    assert same(as_is(write(tmp_path / "a.obj", CUBE_TEXT + more)), [TOP])
    for line in ("surf 0 1 0 1 1 2", "call other.obj", "V 1 2 3", "<<<<<<< HEAD", "1 2 3"):
        said = refused(tmp_path, "b.obj", CUBE_TEXT + f"\n{line}\n")
        assert said == f"line 23 begins with {line.split()[0]!r}, which is not read"


@pytest.mark.parametrize("end", ["\\", "\\\n", "\\  ", "\\\n# the end", "\\\n\n"])
def test_a_continued_line_is_read_at_the_end_of_an_obj(tmp_path, end):
    """Without its last face a cuboid is open; a piece has as many triangles as the file."""
    [(_, faces)] = read_mesh(write(tmp_path / "a.obj", CUBE_TEXT.rstrip("\n") + end))
    assert len(faces) == len(TRIANGLES)


def test_a_face_with_a_point_that_is_not_there_is_named_by_its_line(tmp_path):
    for face, reason in {
        "f 1 2 9": "line 22 is no face: 'f 1 2 9' has point 9 of 8",
        "f 1/1 2/2 12/3\nf 9 1 2": "line 22 is no face: 'f 1/1 2/2 12/3' has point 12 of 8",
        "f 1 0 2": "line 22 is no face: 'f 1 0 2'",
        "f -1 -2 -9": "line 22 is no face: 'f -1 -2 -9'",
    }.items():
        assert refused(tmp_path, "a.obj", CUBE_TEXT + face + "\n") == reason
    assert same(as_is(write(tmp_path / "b.obj", "f 1 2 4\n" + CUBE_TEXT)), [TOP])  # points that come later are there


@pytest.mark.parametrize("faces", [SIDES, [*SIDES[:5], *TRIANGLES[-2:]]], ids=["alike", "mixed"])
@pytest.mark.parametrize(
    "old, new, reason",
    [
        ("0.5 7\n", "0.5 7 7\n", "vertex 0 (counted from 0) has 5 numbers, where its header asks for 4"),
        ("0.5 7\n", "0.5 7\n \n", None),
        ("0.5 7\n", "0.5\n7\n", "vertex 0 (counted from 0) has 3 numbers, where its header asks for 4"),
        ("\n4 0 1 3 2\n", "\n4 0 1 3 2 5\n", "face 0 (counted from 0) has 6 numbers, where its header asks for 5"),
        ("\n4 0 1 3 2\n", "\n4 0 1 3\n2\n", "face 0 (counted from 0) has 4 numbers, where its header asks for 5"),
        ("\n4 0 1 3 2\n", "\nnan 0 1 3 2\n", "face 0 (counted from 0) has a list of nan"),
        ("\n4 4 6 7 5\n", "\n4 4 6 x 5\n", "face 1 (counted from 0) is no line of numbers: '4 4 6 x 5'"),
    ],
)
def test_a_text_ply_has_an_element_a_line(tmp_path, faces, old, new, reason):
    content = ply_file([TOP], faces).decode().replace(old, new, 1)
    assert content != ply_file([TOP], faces).decode()
    if reason is None:
        assert same(as_is(write(tmp_path / "a.ply", content)), [TOP])
    else:
        assert refused(tmp_path, "a.ply", content).startswith(reason)


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian"])
def test_what_follows_the_last_element_of_a_ply_is_refused(tmp_path, form):
    content = ply_file([TOP], TRIANGLES, form)
    assert same(as_is(write(tmp_path / "a.ply", content + b"\r\n\n")), [TOP])
    assert refused(tmp_path, "b.ply", content + b"3 1 2 3\n") == "it goes on after all that its header names: '3 1 2 3'"


def test_a_list_of_a_ply_beside_the_corners(tmp_path):
    content = ply_file([TOP], SIDES).decode().replace("end_header", "property list uchar float texcoord\nend_header")
    head, _, rows = content.partition("end_header\n")
    rows = [row + (" 2 0 1" if k >= 8 else "") for k, row in enumerate(rows.splitlines())]
    assert same(as_is(write(tmp_path / "a.ply", head + "end_header\n" + "\n".join(rows))), [TOP])
