from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from recon_ray.figures.mesh import absolute_patches, point_mesh
from recon_ray.figures.ply import write_ply


def test_ply_is_read_back_by_another_program(tmp_path):
    points = torch.randn(50, 3)
    colors = torch.randint(0, 256, (50, 3), dtype=torch.uint8)
    cloud = trimesh.load(write_ply(tmp_path / "new" / "p.ply", points, colors))
    np.testing.assert_array_equal(np.asarray(cloud.vertices, dtype=np.float32), points.numpy())
    np.testing.assert_array_equal(np.asarray(cloud.colors)[:, :3], colors.numpy())


def test_ply_bytes_are_little_endian_floats(tmp_path):
    path = write_ply(str(tmp_path / "p.ply"), np.array([[1.0, 2.0, 3.0]]))
    header, body = path.read_bytes().split(b"end_header\n")
    assert header.startswith(b"ply\nformat binary_little_endian 1.0\nelement vertex 1\n")
    assert body == np.array([1, 2, 3], dtype="<f4").tobytes()


def test_fractions_become_bytes_and_leading_axes_are_flattened(tmp_path):
    points = torch.zeros(2, 3, 3, dtype=torch.bfloat16)
    colors = torch.tensor([1.5, 0.5, -1.0]).expand(2, 3, 3)
    path = write_ply(tmp_path / "p.ply", points, colors)
    body = path.read_bytes().split(b"end_header\n")[1]
    assert len(body) == 6 * 15
    assert list(body[12:15]) == [255, 128, 0]


@pytest.mark.parametrize(
    ("points", "colors"),
    [(np.zeros((4, 2)), None), (np.zeros(3), None), (np.zeros((4, 3)), np.zeros((3, 3)))],
)
def test_shapes_that_do_not_fit_are_refused(tmp_path, points, colors):
    with pytest.raises(ValueError, match="have shape"):
        write_ply(tmp_path / "p.ply", points, colors)


def test_meshes_are_written_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    mesh = point_mesh(torch.randn(2, 10, 3, dtype=torch.float64))
    assert mesh["vertices"].shape == mesh["colors"].shape == (2, 10, 3)
    assert (mesh["vertices"].dtype, mesh["colors"].dtype) == (torch.float32, torch.uint8)
    with SummaryWriter(tmp_path) as writer:
        writer.add_mesh("shape", **mesh, global_step=3)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [tag for tag in events.Tags()["tensors"] if tag.startswith("shape")] == [
        "shape_VERTEX", "shape_COLOR",
    ]  # fmt: skip


def test_one_cloud_gets_a_batch_axis():
    assert point_mesh(torch.zeros(10, 3))["vertices"].shape == (1, 10, 3)


def test_mesh_colors_must_be_bytes_of_the_same_shape():
    points = torch.zeros(1, 4, 3)
    with pytest.raises(ValueError, match="float32"):
        point_mesh(points, torch.zeros(1, 4, 3))
    with pytest.raises(ValueError, match=r"\(1, 5, 3\)"):
        point_mesh(points, torch.zeros(1, 5, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(4,\)"):
        point_mesh(torch.zeros(4))


def test_patches_return_to_their_places():
    patches = torch.zeros(1, 2, 2, 3)
    patches[0, 1, 1] = torch.tensor([0.5, 0.0, 0.0])
    centers = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]])
    expected = torch.tensor([[[1, 0, 0], [1, 0, 0], [0, 2, 0], [0.5, 2, 0]]])
    assert torch.equal(absolute_patches(patches, centers), expected)
