from __future__ import annotations

import pytest
import torch
from weights_samples import TINY, equal, make_model, make_weights, pointmae, published

from recon_ray.errors import CheckpointError
from recon_ray.weights.load import SOURCES, build, compare, construct, encoder_sizes, initialize
from recon_ray.weights.weight_files import read_checkpoint

DECODER = {"mask_token", "decoder_pos_embed", "MAE_decoder", "increase_dim"}
PROJECTIONS = {"img_proj", "text_proj"}
PARTS = {"category", "propagation", "part_head"}


def imported(kind: str, **overrides: object):
    return read_checkpoint(published(kind, **overrides), source="file.pth")


@pytest.mark.parametrize("kind", TINY)
def test_an_imported_file_and_an_own_run_give_the_same_model(kind: str) -> None:
    first, second = make_model(kind, 1), make_model(kind, 2)
    report = initialize(first, imported(kind), strict=True)
    initialize(second, make_weights(kind), strict=True)
    assert equal(first, second)
    assert report.missing == report.unexpected == report.unknown == ()
    assert report.dropped == ("img_encoder.model.weight",)
    assert len(report.loaded) + len(report.renamed) == len(first.state_dict())


@pytest.mark.parametrize(
    ("source", "target", "missing", "unexpected"),
    [
        ("recon", "classifier", {"head"}, DECODER | PROJECTIONS),
        ("recon", "partseg", PARTS, DECODER | PROJECTIONS),
        ("recon", "embedder", set(), DECODER),
        ("twotower", "twotower_classifier", {"head", "encoder"}, DECODER | PROJECTIONS),
        ("classifier", "partseg", PARTS, {"cls_head_finetune"}),
    ],
)
def test_a_downstream_model_starts_from_the_trunk(
    source: str, target: str, missing: set[str], unexpected: set[str]
) -> None:
    model = make_model(target, 1)
    report = initialize(model, imported(source))
    assert {key.split(".")[0] for key in report.missing} == missing
    assert {key.split(".")[0] for key in report.unexpected} == unexpected
    trunk = make_model(source)
    names = [key for key in model.state_dict() if "encoder." in key and key not in report.missing]
    own, theirs = model.state_dict(), trunk.state_dict()
    assert len(names) > 50
    assert all(torch.equal(own[name], theirs[name]) for name in names)
    if missing:
        with pytest.raises(CheckpointError, match="would stay random"):
            initialize(model, imported(source), strict=True)


def test_only_the_missing_keys_keep_their_fresh_weights() -> None:
    model = make_model("classifier", 1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = initialize(model, imported("recon"))
    for key, value in model.state_dict().items():
        is_fresh = key in report.missing or key.endswith(("running_mean", "running_var", "tracked"))
        assert torch.equal(value, before[key]) == is_fresh, key


def test_another_head_or_category_head_is_never_taken_for_the_models_own() -> None:
    model = make_model("classifier", 1)
    report = initialize(model, make_weights("partseg"))
    assert all(not name.startswith("head.") for name in report.loaded)


@pytest.mark.parametrize("target", ["recon", "embedder", "classifier", "partseg"])
def test_pointmae_fills_the_patch_path_and_the_contrast_branch_is_reported(target: str) -> None:
    model = make_model(target, 1)
    report = initialize(model, read_checkpoint(pointmae(), source="mae.pth"))
    filled = {ours for ours, _ in report.renamed}
    assert {
        "encoder.embed.fc4.bias",
        "encoder.blocks.1.mlp.fc2.weight",
        "encoder.norm.bias",
    } <= filled
    assert {"encoder.blocks.0.contrast_attn.q.weight", "encoder.class_token"} <= set(report.missing)
    assert "drawn afresh" in report.summary()
    message = "would stay random; Point-MAE has no contrast branch"
    with pytest.raises(CheckpointError, match=message):
        initialize(model, read_checkpoint(pointmae(), source="mae.pth"), strict=True)


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        (
            "recon",
            {"embed_dim": 24},
            r"norm.weight has shape \(12,\) in .* but \(24,\) in .*; change model.embed_dim",
        ),
        (
            "recon",
            {"group_size": 16},
            r"decoder.head.weight has shape \(96, 12\) .* \(48, .* model.group_size",
        ),
        ("recon", {"image_dim": 4}, r"image_proj.weight has shape \(3, 12\) .* teacher.image.name"),
        ("recon", {"patch_widths": (8, 4, 8)}, "embed.fc1.weight has shape .* model.preset"),
        (
            "classifier",
            {"num_classes": 6},
            r"head.fc3.weight has shape \(5, 256\) .* number of classes .* kind=embedder writes",
        ),
        ("partseg", {"num_parts": 9}, "part_head.fc3.weight has shape .* number of parts differs"),
        ("partseg", {"num_categories": 4}, "category.fc.weight has shape .* number of categories"),
        ("recon", {"depth": 3}, r"lack \d+ tensors .*would stay random; set model.depth"),
        ("recon", {"depth": 1}, r"no place for \d+ tensors .*blocks.1.* set model.depth"),
        ("recon", {"self_contrast": True}, "contrast_head.fc1.weight.*would stay random"),
    ],
)
def test_a_misfit_names_what_to_change(target: str, arguments: dict, message: str) -> None:
    if target == "partseg":
        arguments["feature_blocks"] = (0,)
        with pytest.raises(CheckpointError, match=message):
            initialize(make_model(target, **arguments), imported(target, feature_blocks=(0,)))
        return
    with pytest.raises(CheckpointError, match=message):
        initialize(make_model(target, **arguments), imported(target))


def test_nothing_is_loaded_from_a_file_that_does_not_fit() -> None:
    model, untouched = make_model("recon", 1, group_size=16), make_model("recon", 1, group_size=16)
    with pytest.raises(CheckpointError, match=r"model\.group_size"):
        initialize(model, imported("recon"))
    assert equal(model, untouched)


@pytest.mark.parametrize("target", TINY)
def test_another_kind_of_model_is_refused(target: str) -> None:
    for source in sorted(set(TINY) - set(SOURCES[target])):
        message = f"weights of a {source} model, which cannot start a {target} model; give weights"
        with pytest.raises(CheckpointError, match=message):
            initialize(make_model(target), make_weights(source))


def test_a_projection_that_zero_shot_needs_has_to_be_there() -> None:
    message = r"text_proj.weight.* would stay random; give weights of a pre-training with that"
    with pytest.raises(CheckpointError, match=message):
        initialize(make_model("embedder"), imported("recon", text_dim=None))


def test_models_are_built_from_what_the_file_tells() -> None:
    weights = imported("classifier", embed_dim=64, num_heads=1)
    model, report = build(weights, num_heads=1, num_groups=64, group_size=32)
    assert model.num_classes == 5
    assert not report.missing
    assert equal(model, make_model("classifier", embed_dim=64, num_heads=1))
    assert model.fps_min_sq_norm == 1e-3


def test_what_shapes_do_not_tell_is_asked_for() -> None:
    message = (
        r"does not record num_heads and num_groups of the recon model; set num_heads=\.\.\. num_g"
    )
    with pytest.raises(CheckpointError, match=message):
        build(imported("recon"))
    told = {"num_heads": 2, "num_groups": 8}
    assert build(imported("recon"), **told)[0].encoder.blocks[0].attn.num_heads == 2
    with pytest.raises(
        CheckpointError, match="does not record num_groups and group_size of the class"
    ):
        build(imported("classifier"), num_heads=2)
    with pytest.raises(
        CheckpointError, match="does not record feature_blocks of the partseg model"
    ):
        build(imported("partseg"), **told, group_size=32)
    with pytest.raises(CheckpointError, match="does not record stream"):
        build(imported("twotower_classifier", stream="CMC"), **told, group_size=32)
    with pytest.raises(CheckpointError, match="does not record num_classes"):
        construct("classifier", imported("recon"), **told)
    with pytest.raises(CheckpointError, match="a recon model has no stream"):
        build(imported("recon"), **told, stream="ALL")
    with pytest.raises(CheckpointError, match=r"file\.pth: num_heads=5 does not divide"):
        build(imported("recon"), num_heads=5, num_groups=8)
    with pytest.raises(CheckpointError, match="not a whole model; use it as the start"):
        build(read_checkpoint(pointmae(), source="mae.pth"))


def test_a_comparison_needs_no_memory() -> None:
    with torch.device("meta"):
        model = make_model("recon")
    assert not compare(model, imported("recon")).missing


def test_report_lists_every_key() -> None:
    checkpoint = published("recon")
    checkpoint["base_model"]["module.queue"] = torch.zeros(3)
    report = initialize(make_model("classifier"), read_checkpoint(checkpoint, source="file.pth"))
    lines = report.table().splitlines()
    assert "renamed     MAE_encoder.cls_token -> encoder.class_token" in lines
    assert "missing     head.fc1.weight (expected)" in lines
    assert "unexpected  mask_token (expected)" in lines
    assert "unexpected  queue (of no known model)" in lines
    assert "unexpected  img_encoder.model.weight (teacher)" in lines
    assert lines[-1] == report.summary()
    assert "not in the file, drawn afresh (head)" in report.summary()
    keys = len(checkpoint["base_model"]) + len(report.missing)
    assert len(lines) == keys + 1


def test_sizes_of_the_encoder_are_those_a_downstream_model_shares() -> None:
    sizes = encoder_sizes(imported("recon", embed_dim=64, num_heads=1))
    assert sizes == {
        "embed_dim": 64, "depth": 2, "group_size": 32, "patch_widths": (4, 4, 8),
    }  # fmt: skip
