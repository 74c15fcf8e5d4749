from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from recon_ray.benchmarks.config import BenchmarkConfig
from recon_ray.config import fields
from recon_ray.config.fields import index
from recon_ray.config.help import format_help
from recon_ray.config.loader import load, override
from recon_ray.config.sections.common import LocalPath
from recon_ray.errors import ConfigError
from recon_ray.sweeps.fewshot.config import FewshotConfig
from recon_ray.tasks.classify.config import FinetuneConfig
from recon_ray.tasks.partseg.config import PartsegConfig
from recon_ray.tasks.pretrain.config import PretrainConfig


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Optim(Section):
    lr: float = Field(5e-4, gt=0, description="Peak rate.")
    weight_decay: float = Field(0.05, ge=0, description="Decay.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Moments.")


class Train(Section):
    epochs: int = Field(300, ge=1, description="Passes.")
    steps: Annotated[int, Field(ge=1)] | None = Field(None, description="Stop early.")
    compile: bool = Field(False, description="Compile.")
    milestones: tuple[int, ...] = Field((), description="Epochs.")
    global_batch_size: int = Field(128, ge=1, description="Batch.")
    micro_batch_size: int | None = Field(None, description="Part of a batch.")

    @model_validator(mode="after")
    def _parts(self) -> Train:
        if self.micro_batch_size and self.micro_batch_size > self.global_batch_size:
            raise ValueError("micro_batch_size is larger than global_batch_size; lower it")
        return self


class Model(Section):
    preset: Literal["nano", "tiny", "small", "base"] = Field("base", description="Size.")
    mask_type: Literal["random", "block"] | None = Field(None, description="Mask.")


class Cluster(Section):
    workers: int | tuple[int, int] = Field(1, description="Workers.")


class Run(Section):
    name: str | None = Field(None, description="Name.")
    storage: LocalPath = Field(Path("runs"), description="Folder.")
    switch: Literal["auto", "on", "off"] = Field("auto", description="Switch.")
    tag: str = Field("x", description="Tag.")

    @field_validator("tag")
    @classmethod
    def _no_slash(cls, value: str) -> str:
        if "/" in value:
            raise ValueError("a tag has no slash")
        return value


class Extra(Section):
    rate: float = Field(1.0, description="Rate.")


class Data(Section):
    path: str = Field(description="Prepared set.")
    limit: int = Field(5, description="Limit.")


class Config(Section):
    run: Run = Field(default_factory=Run, description="Run.")
    optim: Optim = Field(default_factory=Optim, description="Optimizer.")
    train: Train = Field(default_factory=Train, description="Training.")
    model: Model = Field(default_factory=Model, description="Model.")
    cluster: Cluster = Field(default_factory=Cluster, description="Cluster.")
    extra: Extra | None = Field(None, description="Optional section.")
    sweep: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Search space.")

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.train.global_batch_size == 13:
            raise ValueError("train.global_batch_size=13 fits no number of workers")
        return self


class Required(Section):
    data: Data = Field(description="Data.")
    optim: Optim = Field(default_factory=Optim, description="Optimizer.")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    return tmp_path


def write(name: str, text: str) -> str:
    path = Path("configs") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def errors(*arguments: str, schema: type[BaseModel] = Config) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(schema, arguments)
    return str(caught.value).splitlines()


# --- Order of sources --------------------------------------------------------------------------
def test_later_sources_win_and_sections_merge(folder: Path) -> None:
    a = write("a.yaml", "optim: {lr: 1, weight_decay: 2}\ntrain: {epochs: 3}\n")
    b = write("b.yml", "optim:\n  lr: 4\n")
    loaded = load(Config, ["train.epochs=7", a, "train.epochs=8", b])
    assert loaded.config.optim == Optim(lr=4, weight_decay=2)
    assert loaded.config.train.epochs == 8
    assert loaded.files == (Path(a), Path(b))
    assert loaded.origins == {
        "optim.lr": "configs/b.yml:2",
        "optim.weight_decay": "configs/a.yaml:1",
        "train.epochs": "command line",
    }


def test_the_default_file_is_read_only_if_none_is_named(folder: Path) -> None:
    default = folder / write("default.yaml", "optim.lr: 1\n")
    other = write("other.yaml", "optim.weight_decay: 2\n")
    loaded = load(Config, ["train.epochs=2"], default=default)
    assert (loaded.config.optim.lr, loaded.origins["optim.lr"]) == (1, "configs/default.yaml:1")
    assert load(Config, [other], default=default).config.optim == Optim(weight_decay=2)


def test_includes_come_before_the_keys_of_the_file_and_are_relative_to_it(folder: Path) -> None:
    write("model/base.yaml", "include: ../common.yaml\nmodel.preset: small\noptim.lr: 2\n")
    write("common.yaml", "optim: {lr: 1, weight_decay: 1}\nmodel.preset: tiny\n")
    a = write("a.yaml", "optim: {lr: 3}\ninclude: [model/base.yaml]\n")
    loaded = load(Config, [a])
    assert loaded.config.optim == Optim(lr=3, weight_decay=1)
    assert loaded.config.model.preset == "small"
    assert [str(path) for path in loaded.files] == [
        "configs/common.yaml",
        "configs/model/base.yaml",
        "configs/a.yaml",
    ]
    assert loaded.origins["optim.weight_decay"] == "configs/common.yaml:1"
    write("base.yaml", "optim.lr: 1\n")
    write("left.yaml", "include: [base.yaml]\noptim.lr: 2\n")
    a = write("a.yaml", "include: [left.yaml, base.yaml]\n")
    assert load(Config, [a]).config.optim.lr == 1


def test_an_include_and_a_path_may_start_at_home(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder / "configs"))
    write("mine.yaml", "optim.lr: 4\n")
    assert load(Config, [write("a.yaml", "include: ~/mine.yaml\n")]).config.optim.lr == 4
    monkeypatch.setenv("HOME", "/somewhere")
    assert load(Config, ["run.storage=~/runs"]).config.run.storage == Path("/somewhere/runs")


def test_cycles_missing_files_and_other_wrong_includes_are_named(folder: Path) -> None:
    a = write("a.yaml", "include: [b.yaml]\n")
    write("b.yaml", "train.epochs: 2\ninclude: [a.yaml]\n")
    assert errors(a) == [
        "configs/b.yaml:2: include cycle configs/a.yaml -> configs/b.yaml -> configs/a.yaml"
    ]
    a = write("a.yaml", "optim.lr: 1\ninclude: [gone.yaml]\n")
    assert errors(a, "absent.yaml") == [
        "configs/gone.yaml: no such file (included at configs/a.yaml:2)",
        "absent.yaml: no such file",
    ]
    assert errors(write("a.yaml", "include: {a: 1}\n")) == [
        "include (configs/a.yaml:1): expected a list of YAML files"
    ]


def test_an_empty_heading_changes_nothing_and_null_turns_a_section_off(folder: Path) -> None:
    a = write("a.yaml", "optim: {lr: 3}\nextra: {rate: 2}\n")
    b = write("b.yaml", "optim:\nextra:\n  # rate: 3\n")
    loaded = load(Config, [a, b])
    assert loaded.config.optim.lr == 3
    assert loaded.config.extra == Extra(rate=2)
    assert load(Config, [a, "extra=null"]).config.extra is None


def test_without_options_the_defaults_of_the_schema_apply(folder: Path) -> None:
    assert load(Config, [write("a.yaml", ""), write("b.yaml", "# nothing\n")]).config == Config()
    assert load(Config, []).config == Config()


def test_a_value_may_end_in_yaml_and_a_path_may_have_an_equals_sign(folder: Path) -> None:
    a = write("lr=1/a.yaml", "optim.lr: 1\n")
    config = load(Config, [a, "run.storage=x.yaml"]).config
    assert (config.optim.lr, config.run.storage) == (1, Path("x.yaml"))


# --- Free mappings -----------------------------------------------------------------------------
def test_keys_of_a_free_mapping_keep_their_dots_and_values_are_replaced(folder: Path) -> None:
    a = write("a.yaml", "sweep:\n  optim.lr: {loguniform: [1e-5, 1e-3]}\n  run.seed: {grid: [0]}\n")
    loaded = load(Config, [a, "sweep.optim.lr={grid: [5e-4]}"])
    assert loaded.config.sweep == {"optim.lr": {"grid": [5e-4]}, "run.seed": {"grid": [0]}}
    assert loaded.origins["sweep.run.seed"] == "configs/a.yaml:3"


# --- Values ------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["5e-4", "5E-4", ".0005", "+5e-04", "0.0005", "0.5e-3"])
def test_numbers_without_a_dot_are_numbers_everywhere(folder: Path, text: str) -> None:
    write("inner.yaml", f"optim.lr: {text}\n")
    for arguments in ([f"optim.lr={text}"], [write("a.yaml", f"optim: {{lr: {text}}}\n")]):
        assert load(Config, arguments).config.optim.lr == 5e-4
    assert load(Config, [write("b.yaml", "include: [inner.yaml]\n")]).config.optim.lr == 5e-4


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("train.epochs=1e3", 1000),
        ("train.epochs=1_000", 1000),
        ("train.epochs=010", 10),
        ("train.epochs=0x10", 16),
        ("train.steps=null", None),
        ("train.steps=", None),
        ("train.milestones=[1, 2]", (1, 2)),
        ("train.compile=yes", True),
        ("train.compile=off", False),
        ("train.compile=True", True),
        ("optim.lr=3", 3.0),
        ("optim.lr=1e5", 1e5),
        ("optim.betas=[.5, 1]", (0.5, 1.0)),
        ("cluster.workers=[1, 4]", (1, 4)),
        ("cluster.workers=2", 2),
        ("run.name=2026", "2026"),
        ("run.name=1e5", "1e5"),
        ("run.name=007", "007"),
        ("run.name=no", "no"),
        ("run.name=2026-01-01", "2026-01-01"),
        ("run.name=12:30", "12:30"),
        ("run.name=true", "true"),
        ("run.name=null", None),
        ("run.name='null'", "null"),
        ("run.name=@home [x", "@home [x"),
        ("run.name=a #3", "a #3"),
        ("run.name=a=b", "a=b"),
        ("run.switch=off", "off"),
        ("run.storage=7", Path("7")),
        ("model.mask_type=null", None),
    ],
)
def test_values_are_read_as_the_option_means_them(argument: str, expected: object) -> None:
    section, name = argument.partition("=")[0].split(".")
    value = getattr(getattr(load(Config, [argument]).config, section), name)
    assert (value, type(value)) == (expected, type(expected))


# --- Messages ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optim.lr=fast", "expected a number > 0, found 'fast'"),
        ("optim.lr='3'", "expected a number > 0, found '3'"),
        ("optim.lr=0", "expected a number > 0, found 0"),
        ("optim.lr=true", "expected a number > 0, found true"),
        ("optim.lr=", "expected a number > 0, found null"),
        ("optim.lr={a: 1, b: 2}", "expected a number > 0, found a section with keys a, b"),
        ("optim.betas=[1]", "expected a list [number, number], found [1]"),
        ("optim.betas=1,2", "expected a list [number, number], found '1,2'"),
        ("train.epochs=1.5", "expected an integer >= 1, found 1.5"),
        ("train.epochs=yes", "expected an integer >= 1, found 'yes'"),
        ("train.steps=0", "expected an integer >= 1 or null, found 0"),
        ("train.compile=1", "expected true or false, found 1"),
        ("train.compile='yes'", "expected true or false, found 'yes'"),
        ("train.milestones=[1, a]", "expected a list of integers, found [1, 'a']"),
        ("model.preset=huge", "expected one of nano, tiny, small, base, found 'huge'"),
        ("model.mask_type=x", "expected one of random, block, null, found 'x'"),
        (
            "cluster.workers=[1, 2, 3]",
            "expected an integer or a list [integer, integer], found [1, 2, 3]",
        ),
        ("run.storage=[a]", "expected a path, found ['a']"),
        ("run.name={a: 1}", "expected text or null, found a section with keys a"),
        ("run.tag=a/b", "a tag has no slash"),
        ("sweep=3", "expected a mapping, found 3"),
        (
            "train=5",
            "expected a section with keys epochs, steps, compile, milestones, global_batch_size, "
            "micro_batch_size, found 5",
        ),
        ("optim=null", "expected a section with keys lr, weight_decay, betas, found null"),
        ("optim.learning_rate=1", "unknown key; did you mean optim.lr?"),
        ("train.lr=1", "unknown key; did you mean optim.lr?"),
        ("lr=1", "unknown key; did you mean optim.lr?"),
        ("epoch=1", "unknown key; did you mean train.epochs?"),
        (
            "train.batch_size=1",
            "unknown key; did you mean train.micro_batch_size or train.global_batch_size?",
        ),
        ("optim.zzz=1", "unknown key; keys of optim are lr, weight_decay, betas"),
        ("zzz=1", "unknown key; see --help"),
        ("optmi.lr=1", "unknown key; did you mean optim.lr?"),
        ("optmi={lr: 1, weight_decay: 1}", "unknown key; did you mean optim?"),
    ],
)
def test_one_wrong_value_gives_one_exact_line(argument: str, message: str) -> None:
    key = argument.partition("=")[0]
    assert errors(argument) == [f"{key} (command line): {message}"]


def test_all_errors_come_at_once_with_file_and_line(folder: Path) -> None:
    a = write(
        "a.yaml",
        "optim:\n  learning_rate: 1\ntrain:\n  epochs: 0\n  compile: maybe\nmodel.preset: huge\n",
    )
    assert errors(a, "optim.lr=fast") == [
        "optim.lr (command line): expected a number > 0, found 'fast'",
        "optim.learning_rate (configs/a.yaml:2): unknown key; did you mean optim.lr?",
        "train.epochs (configs/a.yaml:4): expected an integer >= 1, found 0",
        "train.compile (configs/a.yaml:5): expected true or false, found 'maybe'",
        "model.preset (configs/a.yaml:6): expected one of nano, tiny, small, base, found 'huge'",
    ]


def test_included_files_duplicate_keys_and_files_that_are_not_text_are_named(folder: Path) -> None:
    write("inner.yaml", "\noptim.lr: 0\n")
    assert errors(write("a.yaml", "include: inner.yaml\n")) == [
        "optim.lr (configs/inner.yaml:2): expected a number > 0, found 0"
    ]
    a = write("a.yaml", "optim:\n  lr: 1\n  lr: 2\ntrain.epochs: 1\ntrain:\n  epochs: 2\n")
    assert errors(a) == [
        "lr (configs/a.yaml:3): set twice, first at configs/a.yaml:2",
        "train.epochs (configs/a.yaml:6): set twice, first at configs/a.yaml:4",
    ]
    Path("configs/a.yaml").write_bytes(b"run.name: \xff\n")
    assert errors("configs/a.yaml") == ["configs/a.yaml: not UTF-8 text (byte 10)"]


def test_required_options_and_checks_over_several_name_their_section() -> None:
    assert errors("optim.lr=0", schema=Required) == [
        "data.path: required (text) but not set; give data.path=<value>",
        "optim.lr (command line): expected a number > 0, found 0",
    ]
    assert errors("train.micro_batch_size=999") == [
        "train: micro_batch_size is larger than global_batch_size; lower it"
    ]
    assert errors("train.global_batch_size=13") == [
        "train.global_batch_size=13 fits no number of workers"
    ]


def test_dotted_keys_and_a_section_merge(folder: Path) -> None:
    a = write("a.yaml", "optim.lr: 1\noptim: {weight_decay: 2}\n")
    assert load(Config, [a]).config.optim == Optim(lr=1, weight_decay=2)
    assert load(Config, ["optim={lr: 1}", "optim.weight_decay=2"]).config.optim == Optim(
        lr=1, weight_decay=2
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim:\n  lr: [1\n", "configs/a.yaml:3: not valid YAML: expected ',' or ']', but got"),
        ("optim:\n\tlr: 1\n", "configs/a.yaml:2: not valid YAML: found character '\\t'"),
        ("- 1\n", "configs/a.yaml:1: expected `key: value` lines at the top level"),
        (
            "optim: &x {lr: 1}\ntrain:\n  <<: *x\n",
            "configs/a.yaml:3: not valid YAML: merge keys (<<) are not",
        ),
        ("sweep: &x {a: *x}\n", "configs/a.yaml:1: not valid YAML: found unconstructable recur"),
        (
            "run.name: !!python/name:os.system x\n",
            "configs/a.yaml:1: not valid YAML: could not determine a const",
        ),
        ("? [a, b]\n: 1\n", "configs/a.yaml:1: not valid YAML: found unhashable key"),
        ("a: 1\n---\nb: 2\n", "configs/a.yaml:2: not valid YAML: but found another document"),
    ],
)
def test_malformed_yaml_is_one_line_with_its_place(folder: Path, text: str, message: str) -> None:
    (line,) = errors(write("a.yaml", text))
    assert line.startswith(message)


def test_arguments_of_no_known_form_are_refused_and_long_values_cut() -> None:
    assert errors("tiny", "--optim.lr=3") == [
        "tiny: expected a YAML file or key=value",
        "--optim.lr=3: expected a YAML file or key=value",
    ]
    (line,) = errors(f"optim.lr={'x' * 500}")
    assert len(line) < 150


# --- Changes by a program ----------------------------------------------------------------------
def test_override_checks_like_the_command_line() -> None:
    base = load(Config, ["run.name=no", "optim.lr=2", "sweep.optim.lr={grid: [1]}"]).config
    assert override(base, {}) == base
    changed = override(base, {"optim.lr": 0.5, "cluster.workers": (1, 2), "run.name": 7})
    assert (changed.optim.lr, changed.cluster.workers, changed.run.name) == (0.5, (1, 2), "7")
    with pytest.raises(ConfigError) as caught:
        override(base, {"optim.lr": -1.0, "optim.l": 2}, origin="sweep")
    assert str(caught.value).splitlines() == [
        "optim.lr (sweep): expected a number > 0, found -1",
        "optim.l (sweep): unknown key; did you mean optim.lr?",
    ]


# --- Words -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("annotation", "constraints", "expected"),
    [
        (int, {"ge": 1, "le": 5}, "an integer >= 1 and <= 5"),
        (float | None, {"gt": 0}, "a number > 0 or null"),
        (Literal["auto", "never"] | Path, {}, "auto, never or a path"),
        (tuple[Path, ...], {}, "a list of paths"),
        (tuple[int, str], {}, "a list [integer, text]"),
        (tuple[Literal["a", "b"], ...], {}, "a list of a, b"),
        (tuple[int, ...], {"min_length": 2}, "a list of integers of length >= 2"),
        (Any, {}, "any value"),
    ],
)
def test_types_in_words(annotation: Any, constraints: dict[str, Any], expected: str) -> None:
    model = type(
        "Probe", (BaseModel,), {"__annotations__": {"x": annotation}, "x": Field(**constraints)}
    )
    assert fields.expectation(model.model_fields["x"]) == expected


# --- Defaults of a job ---------------------------------------------------------------------------
class Rates(Section):
    lr: float = 0.5
    warmup: float | None = 10.0


class Stages(Section):
    rates: Rates = Rates()
    name: str = "a"


class OwnDefaults(Section):
    """A job that starts from other values than its sections' classes do."""

    rates: Rates = Rates(lr=0.1, warmup=None)
    stages: Stages = Stages(rates=Rates(lr=0.2))


def test_one_option_of_a_section_leaves_the_jobs_other_defaults() -> None:
    found = load(OwnDefaults, ["rates.warmup=3", "stages.name=b"]).config
    assert (found.rates.lr, found.rates.warmup) == (0.1, 3.0)
    assert (found.stages.rates.lr, found.stages.rates.warmup) == (0.2, 10.0)
    found = load(OwnDefaults, ["rates.lr=1", "stages.rates.warmup=null"]).config
    assert (found.rates.lr, found.rates.warmup) == (1.0, None)
    assert (found.stages.rates.lr, found.stages.rates.warmup) == (0.2, None)


@pytest.mark.parametrize(
    "schema", [BenchmarkConfig, FewshotConfig, FinetuneConfig, PartsegConfig, PretrainConfig]
)
def test_every_default_that_the_help_tells_is_the_one_that_applies(schema: type[BaseModel]) -> None:
    config = schema()
    for key in index(schema).options:
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if not isinstance(value, tuple | list | dict):
            row = format_help(schema, key, width=1000)
            assert f"  {fields.scalar_text(value)}  " in row, f"{key} is {value}: {row}"
