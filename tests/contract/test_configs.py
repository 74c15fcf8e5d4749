"""Every shipped configuration parses, every schema is strict, and the README names real options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, TypeAdapter

from recon_ray.config.fields import index
from recon_ray.config.help import dump_yaml
from recon_ray.config.loader import load
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.registry import JOBS
from recon_ray.tasks.zeroshot.config import ZeroshotConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"

# Files of other programs; test_cluster_files.py has their schemas.
FOREIGN = ("cluster",)

FILES = sorted(path for path in CONFIGS.rglob("*.y*ml") if path.parent.name not in FOREIGN)


SCHEMAS: dict[str, type[BaseModel]] = {name: spec.load_config() for name, spec in JOBS.items()}


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(CONFIGS)) for path in FILES])
def test_every_configuration_parses(path: Path, tmp_path: Path) -> None:
    """The folder below configs/ is named after the job that reads it."""
    folder = path.parent.relative_to(CONFIGS).as_posix()
    schema = SCHEMAS["pretrain" if folder == "." else folder]
    config = load(schema, [str(path)]).config
    again = tmp_path / "config.yaml"
    again.write_text(dump_yaml(config), encoding="utf-8")
    assert load(schema, [str(again)]).config == config


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_section_is_frozen_strict_and_described(name: str) -> None:
    keys = index(SCHEMAS[name])
    for key, section in keys.sections.items():
        assert section.model_config.get("extra") == "forbid", key
        assert section.model_config.get("frozen") is True, key
    assert [key for key, info in keys.options.items() if not info.description] == []
    assert "include" not in keys.sections[""].model_fields  # taken by the YAML files


#: Options of text that name a folder, a file, a URI or weights; Path options always do.
LOCATIONS = re.compile(
    r"(^|[._])(path|storage|folder|table|input|output|cache|episodes|resume|from|data)$"
)


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_path_may_start_at_home(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    left = []
    for key, info in index(SCHEMAS[name]).options.items():
        kinds = str(info.annotation)
        if "Path" not in kinds and not ("str" in kinds and LOCATIONS.search(key)):
            continue
        adapter = TypeAdapter(Annotated[(info.annotation, key, *info.metadata)])
        read = adapter.validate_python(["~/x"] if "tuple" in kinds else "~/x")
        if "/somewhere/x" not in str(read):
            left.append(key)
        if "str" in kinds:
            assert adapter.validate_python("s3://bucket/~x") == "s3://bucket/~x"
    assert left == []
    assert "run.storage" in index(SCHEMAS[name]).options


def test_locations_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    file = tmp_path / "c.yaml"
    file.write_text("init_from: ~/weights.pth\nteacher:\n  text: {name: 'table:~/t.npz'}\n")
    arguments = [str(file), "run.storage=~/runs", "data.path=~/set"]
    arguments.append("teacher.image.name=timm:vit_tiny_patch16_224:~/w.pth")
    config = load(PretrainConfig, [a for a in arguments if a != str(file)]).config
    assert config.run.storage == "/somewhere/runs"
    assert config.data.path == "/somewhere/set"
    assert config.teacher.image.name == "timm:vit_tiny_patch16_224:/somewhere/w.pth"
    zeroshot = load(ZeroshotConfig, [str(file)]).config
    assert (zeroshot.init_from, zeroshot.teacher.text.name) == (
        "/somewhere/weights.pth",
        "table:/somewhere/t.npz",
    )
    assert load(PretrainConfig, ["data.path=a/~b"]).config.data.path == "a/~b"
