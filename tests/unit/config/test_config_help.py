from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from recon_ray.config.help import dump_yaml, format_help
from recon_ray.config.loader import load
from recon_ray.errors import ConfigError
from recon_ray.tasks.pretrain.config import PretrainConfig


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Optim(Section):
    """The optimizer. Not shown."""

    lr: float = Field(5e-4, gt=0, description="Peak learning rate of the global batch.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Decay of the moments.")


class Text(Section):
    """Text teacher."""

    name: str | None = Field(None, description="Name.")


class Teacher(Section):
    text: Text = Field(default_factory=Text, description="Text.")


class Config(Section):
    source: Literal["modelnet", "custom"] = Field(description="Kind of source.")
    path: Path = Field(
        Path("data"), description="A folder whose description is so long that it wraps."
    )
    optim: Optim = Field(default_factory=Optim, description="Optimizer.")
    teacher: Teacher = Field(default_factory=Teacher, description="Teachers.")
    free: dict[str, Any] = Field(default_factory=dict, description="Anything.")


class Values(Section):
    text: str = ""
    maybe: str | None = None
    mixed: float | str | None = None
    flag: bool = False
    number: float = 0.0
    count: int = 0
    words: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()
    workers: int | tuple[int, int] = 1
    path: Path = Path()
    free: dict[str, Any] = Field(default_factory=dict)


HELP = """\
  source  modelnet | custom  required  Kind of source.
  path    path               data      A folder whose description is so long
                                       that it wraps.
  free    mapping            {}        Anything.

optim: The optimizer. Not shown.
  optim.lr     number > 0             0.0005        Peak learning rate of the global batch.
  optim.betas  list [number, number]  [0.9, 0.999]  Decay of the moments.

teacher.text: Text teacher.
  teacher.text.name  text | null  null  Name."""


def test_help_lists_key_type_default_and_meaning_of_all_or_a_section() -> None:
    assert format_help(Config, width=80) == HELP
    section = "teacher.text: Text teacher.\n  teacher.text.name  text | null  null  Name."
    assert format_help(Config, "teacher") == section
    assert format_help(Config, "optim.lr") == (
        "  optim.lr  number > 0  0.0005  Peak learning rate of the global batch."
    )
    with pytest.raises(ConfigError, match=r"^optm: unknown section; did you mean optim\?$"):
        format_help(Config, "optm")
    with pytest.raises(ConfigError, match=r"zzzz: unknown section; sections are optim, teacher"):
        format_help(Config, "zzzz")


def test_every_option_of_pretraining_has_a_line_with_its_description() -> None:
    lines = format_help(PretrainConfig, width=400).splitlines()
    for name, description in _options(PretrainConfig):
        assert description, name
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert line.endswith(f"  {description}"), name


def _options(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str | None]]:
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _options(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.description


TRICKY = [
    "no", "off", "null", "~", "", "5e-4", "1e5", ".5", "007", "0x1f", "2026-01-01", "12:30", "<<",
    "true", "a: b", "#x", " lead", "trail ", "line\nbreak", "tab\t", "über", "'q\"", "- x", "[a",
    "{b}", "!t", "@x", "%y", "*z", "&w", "a #b", "\u2028", "x" * 300, "1_000", "=", "\x07",
]  # fmt: skip
NUMBERS = [0.0, -0.0, 5e-4, 1e-300, 1e300, 1 / 3, math.inf, -math.inf, 1e16, 123456789.123, 3.0]


def draw(generator: random.Random) -> Values:
    words = [generator.choice(TRICKY) for _ in range(generator.randrange(4))]
    number = generator.choice([*NUMBERS, generator.uniform(-1, 1), generator.gauss(0, 1e6)])
    return Values(
        text=generator.choice(TRICKY),
        maybe=generator.choice([None, *TRICKY]),
        mixed=generator.choice([None, number, *TRICKY]),
        flag=generator.random() < 0.5,
        number=number,
        count=generator.randrange(-(10**12), 10**12),
        words=tuple(words),
        numbers=(number, number / 7),
        workers=generator.choice([0, 3, (1, 4)]),
        path=Path(generator.choice([t for t in TRICKY if not t.startswith("~")])),
        free={word: [word, number, {"a.b": None}] for word in words},
    )


def test_a_dumped_configuration_loads_as_an_equal_one(tmp_path: Path) -> None:
    generator = random.Random(0)
    file = tmp_path / "config.yaml"
    for _ in range(100):
        config = draw(generator)
        file.write_text(dump_yaml(config), encoding="utf-8")
        assert load(Values, [str(file)]).config == config


def test_another_yaml_reader_sees_the_same_values() -> None:
    generator = random.Random(1)
    for _ in range(30):
        config = draw(generator)
        read = yaml.safe_load(dump_yaml(config))
        # A YAML 1.1 reader takes "5e-4" for text anyway, so text and numbers both survive.
        assert (read["text"], read["number"]) == (config.text, config.number)
        assert tuple(read["words"]) == config.words


def test_the_configuration_of_pretraining_survives_a_dump(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    arguments = ["cluster.workers=[1, 2]", "optim.lr=1e-4", "run.name=no"]
    arguments.append("teacher.image.name=null")
    config = load(PretrainConfig, arguments).config
    file.write_text(dump_yaml(config))
    assert load(PretrainConfig, [str(file)]).config == config
    assert list(yaml.safe_load(file.read_text())) == list(PretrainConfig.model_fields)
    assert "workers: [1, 2]" in file.read_text()
