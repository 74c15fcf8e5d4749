"""Zero-shot, probes, part segmentation, embedding and retrieval that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from job_runs import Jobs

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.models.recon import Recon
from recon_ray.models.twotower import TwoTower
from recon_ray.weights.weight_files import save_weights

TEXT = "zeroshot zeroshot.kind=text"


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """Weights of a pre-training with a text teacher only, eight numbers wide."""
    sizes = {"embed_dim": 24, "depth": 1, "num_heads": 2, "num_groups": 8, "group_size": 8}
    architecture = {**sizes, "decoder_depth": 1, "image_dim": None, "text_dim": 8}
    model = Recon(**architecture)
    path = tmp_path / "pre.safetensors"
    save_weights(path, model.state_dict(), kind="recon", architecture=architecture)
    return path


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        ("zeroshot", 1, r"zeroshot\.kind=full: .*pre\.safetensors has no image projection"),
        (
            f"{TEXT} zeroshot.classes.mugg=cup",
            2,
            r"zeroshot\.classes\.mugg: .* no such class, did you mean 'mug'\?",
        ),
        (
            f"{TEXT} zeroshot.splits=[val]",
            2,
            r"zeroshot\.splits=val: .* has the splits train, test",
        ),
        (f"{TEXT} teacher.text.name=table:none.npz", 2, r"'table:none\.npz': there is no file"),
        (
            f"{TEXT} teacher.text.name=descriptor:16",
            2,
            "its features are 16 wide, the text projection .* gives 8",
        ),
        ("linear_probe probe.knn=[1,25]", 2, r"probe\.knn: 25 neighbors, .* 24 labeled"),
        ("embed init_from=null", 2, r"init_from=<run folder or file of weights> must be"),
        ("embed data.path=null", 2, r"data\.path=<prepared set> or files=\[a\.ply"),
        ("embed embed.splits=[val]", 2, r"embed\.splits=val: .* has the splits train, test"),
        ("embed data.num_points=97", 2, r"data\.num_points=97: .* holds 96 points a shape"),
        ("embed data.num_points=7", 2, r"data\.num_points=7 is too few for the model's 8"),
        ("embed files=[absent.ply]", 1, r"absent\.ply: cannot be read \(No such file"),
        ("retrieve init_from=null", 2, r"init_from=<run folder or file of weights> must be"),
        ("retrieve query=absent.ply", 2, r"query=absent\.ply: no such file; give a picture"),
        ("retrieve query=[]", 2, r"query \(command line\): expected text"),
        (
            "retrieve teacher.text.name=descriptor:16",
            2,
            "its features are 16 wide, the text projection .* gives 8",
        ),
        (
            "retrieve teacher.text.name=null teacher.image.name=null",
            2,
            r"teacher\.image\.name and teacher\.text\.name are both null; name one",
        ),
        ("partseg", 2, r"data\.path=.*: its shapes have no part labels"),
        ("partseg test=only init_from=null", 2, "test=only needs init_from=<weights"),
    ],
)
def test_what_a_downstream_job_cannot_do_is_refused(
    jobs: Jobs,
    tiny_prepared: PreparedSet,
    encoder: Path,
    command: str,
    status: int,
    message: str,
) -> None:
    job, *options = command.split()
    given = (f"init_from={encoder}", f"data.path={tiny_prepared.path}", *options)
    jobs.run(job, *given).refused(status, message)
    assert jobs.left_behind() == []


def test_features_of_a_damaged_file_or_of_two_towers_are_refused(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, encoder: Path
) -> None:
    monkeypatch.chdir(jobs.folder)
    Path("cut.ply").write_bytes(b"ply\nformat ascii 1.0\nelement vertex 9\nproperty float x\n")
    refused = jobs.run("embed", f"init_from={encoder}", "files=[cut.ply]")
    refused.refused(1, r"cut\.ply: cannot be read \(")
    sizes = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    towers = jobs.folder / "towers.safetensors"
    save_weights(towers, TwoTower(**sizes).state_dict(), kind="twotower", architecture=sizes)
    refused = jobs.run("embed", f"init_from={towers}", "files=[cut.ply]")
    refused.refused(1, r"holds the weights of a twotower model, which cannot start a")


def test_part_segmentation_refuses_other_sets_splits_and_weights(
    jobs: Jobs, tiny_parts: PreparedSet, encoder: Path
) -> None:
    path = f"data.path={tiny_parts.path}"
    jobs.run("partseg", path, "data.test_split=none").refused(
        2, r"data\.test_split=none: it has no such split in .* \(it has train 6, val 3, test 5\)"
    )
    only = (path, "test=only", f"init_from={encoder}")
    jobs.run("partseg", *only).refused(1, "holds a recon model, and test=only scores")
    assert jobs.left_behind() == []
