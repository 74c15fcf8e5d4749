"""Shape files: what is read, what is refused, and how points are drawn."""

from __future__ import annotations

import io

import numpy as np
import pytest
import trimesh
from data_samples import cloud

from recon_ray.data.prepare.sampling import sample_points
from recon_ray.data.readers import meshes
from recon_ray.data.readers.meshes import Shape, load_shape, sample_generator, turn_y_up
from recon_ray.data.readers.pcd import _lzf_decompress
from recon_ray.errors import DataError

SQUARE = "4 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2\n3 0 2 3\n"


@pytest.fixture
def write(tmp_path):
    def inner(name, content):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return inner


def _area(shape):
    return meshes.face_areas(shape).sum()


@pytest.mark.parametrize("header", ["OFF\n", "OFF", "OFF ", "# note\nOFF\n\n# more\n", "off\n"])
def test_off_headers_as_they_are_found(write, header):
    shape = load_shape(write("a.off", header + SQUARE))
    assert (len(shape.vertices), len(shape.faces)) == (4, 2)
    assert _area(shape) == pytest.approx(1)


def test_off_polygons_are_cut_into_triangles_and_colors_read(write):
    shape = load_shape(write("a.off", "OFF\n4 1 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n"))
    assert len(shape.faces) == 2
    assert _area(shape) == pytest.approx(1)
    vertices = "0 0 0 255 0 0 255\n1 0 0 255 0 0 255\n0 1 0 255 0 0 255\n"
    shape = load_shape(write("a.off", f"COFF\n3 1 0\n{vertices}3 0 1 2\n"))
    assert shape.colors.tolist() == [[[255, 0, 0]] * 3]
    shape = load_shape(write("b.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2 0.0 1.0 0.0\n"))
    assert shape.colors.tolist() == [[[0, 255, 0]] * 3]


@pytest.mark.parametrize("suffix", ["ply", "obj", "stl", "glb", "off"])
def test_mesh_formats_give_the_same_surface(tmp_path, suffix):
    path = tmp_path / f"box.{suffix}"
    trimesh.creation.box((1, 2, 3)).export(path)
    shape = load_shape(path)
    assert shape.is_mesh
    assert _area(shape) == pytest.approx(22, rel=1e-5)  # float32 in the files


def test_scenes_are_flattened_with_their_poses_and_colors(tmp_path):
    scene = trimesh.Scene()
    for offset, color in ((0, [255, 0, 0, 255]), (5, [0, 0, 255, 255])):
        box = trimesh.creation.box((1, 1, 1))
        box.visual.face_colors = color
        scene.add_geometry(
            box, transform=trimesh.transformations.translation_matrix([offset, 0, 0])
        )
    path = tmp_path / "two.glb"
    scene.export(path)
    shape = load_shape(path)
    assert np.ptp(shape.vertices, axis=0).tolist() == pytest.approx([6, 1, 1])
    centers = shape.vertices[shape.faces].mean(axis=1)
    assert (shape.colors[centers[:, 0] < 2] == [255, 0, 0]).all()
    assert (shape.colors[centers[:, 0] > 2] == [0, 0, 255]).all()


def test_order_of_the_parts_in_a_scene_does_not_matter(tmp_path, monkeypatch):
    scene = trimesh.Scene([trimesh.creation.box((1, 1, i)) for i in (1, 2, 3)])
    scene.export(tmp_path / "s.glb")
    first = load_shape(tmp_path / "s.glb")
    ordered = meshes._placed
    monkeypatch.setattr(meshes, "_placed", lambda loaded: ordered(loaded)[::-1])
    second = load_shape(tmp_path / "s.glb")
    np.testing.assert_array_equal(first.vertices, second.vertices)
    np.testing.assert_array_equal(first.faces, second.faces)


@pytest.mark.parametrize("name", ["c.npy", "c.npz", "c.xyz", "c.txt", "c.ply", "c.pcd"])
def test_cloud_formats_give_the_same_points(tmp_path, name):
    points = cloud(3, 20)
    path = tmp_path / name
    writers = {
        "npy": lambda: np.save(path, points),
        "npz": lambda: np.savez(path, points=points),
        "xyz": lambda: np.savetxt(path, points),
        "txt": lambda: np.savetxt(path, points, delimiter=","),
        "ply": lambda: trimesh.PointCloud(points).export(path),
        "pcd": lambda: path.write_bytes(_pcd("binary", points.tobytes(), len(points))),
    }
    writers[path.suffix[1:]]()
    shape = load_shape(path)
    assert not shape.is_mesh
    np.testing.assert_allclose(shape.vertices, points, rtol=1e-6)  # text keeps float32's digits


def _pcd(mode: str, body: bytes, count: int, fields: str = "x y z", size: str = "4 4 4") -> bytes:
    kinds = " ".join("F" for _ in fields.split())
    ones = " ".join("1" for _ in fields.split())
    header = (
        f"# .PCD v0.7\nVERSION 0.7\nFIELDS {fields}\nSIZE {size}\nTYPE {kinds}\nCOUNT {ones}\n"
        f"WIDTH {count}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {count}\nDATA {mode}\n"
    )
    return header.encode() + body


def test_pcd_ascii_with_colors(write):
    packed = np.array([(255 << 16) | (128 << 8) | 7], "<u4").view("<f4")[0]
    lines = f"0 0 0 {packed!r}\n1 2 3 {packed!r}\n".replace("np.float32(", "").replace(")", "")
    body = np.array([[0, 0, 0, packed], [1, 2, 3, packed]], "<f4").tobytes()
    shape = load_shape(write("b.pcd", _pcd("binary", body, 2, "x y z rgb", "4 4 4 4")))
    assert shape.colors.tolist() == [[255, 128, 7]] * 2
    shape = load_shape(write("a.pcd", _pcd("ascii", lines.encode(), 2, "x y z rgb", "4 4 4 4")))
    assert shape.vertices.tolist() == [[0, 0, 0], [1, 2, 3]]


def test_pcd_compressed(write):
    # LZF by hand: one zero byte, a copy of eleven more, then twelve bytes as they are.
    raw = np.array([[0, 1], [0, 2], [0, 3]], "<f4")  # columns x, y, z of two points
    plain = raw.tobytes()
    packed = b"".join(bytes([len(p) - 1]) + p for p in (plain[:20], plain[20:]))
    body = np.array([len(packed), len(plain)], "<u4").tobytes() + packed
    shape = load_shape(write("a.pcd", _pcd("binary_compressed", body, 2)))
    assert shape.vertices.tolist() == [[0, 0, 0], [1, 2, 3]]


def test_lzf_copies_may_overlap():
    assert _lzf_decompress(bytes([0, 7, 0b00100000, 0]), 4) == bytes([7] * 4)
    assert _lzf_decompress(bytes([0, 7, 0b11100000, 3, 0]), 13) == bytes([7] * 13)


def test_extra_columns_are_told_apart(tmp_path):
    points = cloud(0, 10)
    normals = points / np.linalg.norm(points, axis=1, keepdims=True)
    np.save(tmp_path / "n.npy", np.hstack([points, normals]))
    np.save(tmp_path / "c.npy", np.hstack([points, np.full((10, 3), 200.0)]))
    assert load_shape(tmp_path / "n.npy").normals is not None
    assert load_shape(tmp_path / "c.npy").colors.tolist() == [[200] * 3] * 10


@pytest.mark.parametrize("faces", [[[0, 1, 2], [0, 2, 3]], [[0, 1, 2, 3]]])
def test_triangles_and_quads_of_npz_files(tmp_path, faces):
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
    np.savez(tmp_path / "a.npz", vertices=vertices, faces=np.array(faces))
    shape = load_shape(tmp_path / "a.npz")
    assert shape.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert _area(shape) == pytest.approx(1)


@pytest.mark.parametrize(
    ("vertices", "faces", "reason"),
    [
        (np.eye(4), np.zeros((2, 5), int), r"of shape \(faces, 3 or 4\), not int64 \(2, 5\)"),
        (np.eye(4), np.array([0, 1, 2]), r"of shape \(faces, 3 or 4\), not int64 \(3,\)"),
        (np.eye(4), np.eye(3), r"faces as integers of shape \(faces, 3 or 4\), not float64"),
        (np.eye(2), np.array([[0, 1, 1]]), r"expected vertices of shape .* found float64 \(2, 2\)"),
    ],
)
def test_npz_arrays_that_are_no_mesh_are_refused(tmp_path, vertices, faces, reason):
    np.savez(tmp_path / "a.npz", vertices=vertices, faces=faces)
    with pytest.raises(DataError, match=rf"a\.npz: .*{reason}"):
        load_shape(tmp_path / "a.npz")


@pytest.mark.parametrize("mode", ["ascii", "binary_little_endian"])
def test_normals_of_ply_clouds_are_read(write, mode):
    points = cloud(0, 10)
    normals = points / np.linalg.norm(points, axis=1, keepdims=True)
    table = np.hstack([points, normals]).astype("<f4")
    names = "".join(f"property float {name}\n" for name in ("x", "y", "z", "nx", "ny", "nz"))
    header = f"ply\nformat {mode} 1.0\nelement vertex 10\n{names}end_header\n".encode()
    lines = "".join(" ".join(map(repr, row)) + "\n" for row in table.tolist())
    body = lines.encode() if mode == "ascii" else table.tobytes()
    shape = load_shape(write("a.ply", header + body))
    assert not shape.is_mesh
    np.testing.assert_allclose(shape.vertices, points, rtol=1e-6)
    np.testing.assert_allclose(shape.normals, normals, rtol=1e-6)


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


BAD = {
    "empty.off": (b"", "the file is empty"),
    "empty.glb": (b"", "the file is empty"),
    "noise.glb": (bytes(range(64)), "cannot be read"),
    "noise.ply": (b"not a ply", "cannot be read"),
    "noise.npy": (b"not numpy", "cannot be read"),
    "noise.xyz": (b"a b c\n", "cannot be read"),
    "uneven.xyz": (b"0 0 0\n1 1 1 1\n", "do not all have 3 numbers"),
    "flat.xyz": (b"1 2\n3 4\n", "expected numbers of shape"),
    "wrong.off": (b"PLY\n3 1 0\n", "does not begin with OFF"),
    "short.off": (b"OFF\n9 9 0\n0 0 0\n", "announces 9 vertices and 9 faces"),
    "faceless.off": (b"OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n", "the mesh has no faces"),
    "index.off": (b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "a face names vertex 7"),
    "area.off": (b"OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n", "the mesh has no area"),
    "nan.xyz": (b"0 0 0\nnan 1 1\n2 2 2\n", "1 of 3 points are not finite"),
    "inf.xyz": (b"0 0 0\ninf 1 1\n", "1 of 2 points are not finite"),
    "one.xyz": (b"1 2 3\n", "holds one point only"),
    "same.xyz": (b"1 2 3\n1 2 3\n", "all 2 points are the same"),
    "none.xyz": (b"# nothing\n", "holds no points"),
    "short.pcd": (_pcd("binary", b"123", 9), "announces 9 points"),
    "header.pcd": (b"VERSION 0.7\n", "has no FIELDS"),
    "shape.blend": (b"x", "cannot read files of this type"),
    "pickled.npy": (_npy(np.array([{}], dtype=object)), "cannot be read"),
    "gone.off": (None, "file not found"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_sentence_with_their_name(tmp_path, write, name):
    content, reason = BAD[name]
    path = tmp_path / name if content is None else write(name, content)
    with pytest.raises(DataError, match=reason) as caught:
        load_shape(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_points_are_spread_by_area():
    # Two squares, one nine times as large.
    vertices = np.array([[0, 0, 0], [3, 0, 0], [3, 3, 0], [0, 3, 0]], float)
    both = np.concatenate([vertices, vertices / 3 + [10, 0, 0]])
    square = np.array([[0, 1, 2], [0, 2, 3]])
    shape = Shape(both, np.concatenate([square, square + 4]))
    drawn = sample_points(shape, 20_000, np.random.default_rng(0), "x")
    # Binomial with p = 0.1: three standard deviations are 0.0064.
    assert (drawn.points[:, 0] > 5).mean() == pytest.approx(0.1, abs=0.0064)
    large = drawn.points[drawn.points[:, 0] < 5]
    np.testing.assert_allclose(large.mean(axis=0), [1.5, 1.5, 0], atol=0.03)
    np.testing.assert_allclose(np.abs(drawn.normals), np.tile([0, 0, 1.0], (20_000, 1)), atol=1e-12)


def test_draws_depend_on_seed_and_id_only_and_do_not_repeat():
    a = sample_generator(0, "chair").random(5)
    np.testing.assert_array_equal(a, sample_generator(0, "chair").random(5))
    assert not np.array_equal(a, sample_generator(1, "chair").random(5))
    assert not np.array_equal(a, sample_generator(0, "stool").random(5))
    drawn = sample_points(Shape(cloud(0, 50)), 40, np.random.default_rng(0), "x").points
    assert len(np.unique(drawn, axis=0)) == 40


def test_turning_up_axes_keeps_handedness():
    axes = np.eye(3)
    for axis, index in (("x", 0), ("z", 2), ("y", 1)):
        turned = turn_y_up(axes, axis)
        assert turned[index].tolist() == [0, 1, 0]
        assert np.linalg.det(turned) == pytest.approx(1)
