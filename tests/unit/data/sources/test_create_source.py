"""Sources by name."""

from __future__ import annotations

import pickle
import re

import pytest

from recon_ray.data.sources.create_source import SOURCES, create_source
from recon_ray.errors import ConfigError, DataError


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_can_be_made_and_sent_to_other_processes(tmp_path, name):
    source = create_source(name, tmp_path, {"seed": 3, "test_fraction": 0.5, "unrelated": 1})
    assert source.name == name
    assert pickle.loads(pickle.dumps(source)) == source


def test_settings_reach_the_sources_that_know_them(tmp_path):
    table = tmp_path / "t.csv"
    table.touch()
    custom = create_source("custom", tmp_path, {"seed": 3, "test_fraction": 0.5, "table": table})
    assert (custom.seed, custom.test_fraction, custom.table) == (3, 0.5, table)
    synthetic = create_source("synthetic", None, {"seed": 3, "train_per_class": 4})
    assert (synthetic.seed, synthetic.train_per_class) == (3, 4)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match="source=modelnet30: unknown; choose from synthetic, cus"):
        create_source("modelnet30", tmp_path, {})
    with pytest.raises(ConfigError, match="input=None: no such folder"):
        create_source("modelnet40", None, {})
    with pytest.raises(ConfigError, match=r"prepare\.table=gone\.csv: no such file"):
        create_source("custom", tmp_path, {"table": "gone.csv"})


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("shapenet55", "shapenet_pc/ and ShapeNet-55/, there or one folder down"),
        ("modelnet40", "modelnet40_train.txt, *.dat, *train*.h5"),
        ("shapenetpart", "synsetoffset2category.txt, there or one folder"),
        ("fewshot", "{way}way_{shot}shot/{fold}.pkl"),
        ("openshape", "objaverse-processed/merged_for_training_final/"),
        ("hdf5", "*train*.h5 or *test*.h5"),
    ],
)
def test_a_folder_of_another_layout_is_refused(tmp_path, name, layout):
    (tmp_path / "robot" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=re.escape(f"expected {layout}")):
        create_source(name, tmp_path, {}).scan()
