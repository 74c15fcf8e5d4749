"""Nothing that comes from a file is executed: no free unpickling, evaluation or YAML objects."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: File to the calls that it may make, and why.
ALLOWED = {
    "recon_ray/cluster/build_pool.py": {"pickle.loads"}  # tasks that the driver has just pickled
}
FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads",
    "marshal.load", "marshal.loads", "shelve.open", "joblib.load", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "eval", "exec", "os.system",
}  # fmt: skip


def executed(source: str) -> Iterator[str]:
    """Return the calls that could run what a file says."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if (
            name in FORBIDDEN
            or (name == "torch.load" and options.get("weights_only") != "True")
            or (name == "np.load" and options.get("allow_pickle", "False") != "False")
            or options.get("shell") == "True"
        ):
            yield name


def test_no_code_of_the_package_runs_what_a_file_says():
    found = {}
    for folder in ("recon_ray", "jobs", "ops/recon_ops"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            calls = set(executed(path.read_text())) - ALLOWED.get(name, set())
            if calls:
                found[name] = calls
    assert found == {}


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("import pickle\npickle.load(f)", "pickle.load"),
        ("torch.load(path)", "torch.load"),
        ("torch.load(path, weights_only=False)", "torch.load"),
        ("np.load(path, allow_pickle=True)", "np.load"),
        ("yaml.load(text, yaml.Loader)", "yaml.load"),
        ("subprocess.run(text, shell=True)", "subprocess.run"),
        ("eval(text)", "eval"),
    ],
)
def test_each_of_them_would_be_found(source, call):
    assert list(executed(source)) == [call]


def test_what_is_safe_is_not_reported():
    safe = "torch.load(p, weights_only=True)\nnp.load(p)\nyaml.safe_load(t)\nmodel.eval()"
    assert list(executed(safe)) == []
