"""What the READMEs say exists: links, options in tables, and every command."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from recon_ray.config.fields import index
from recon_ray.tasks.registry import JOBS

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / folder / "README.md"
    for folder in (".", "jobs", "configs", "configs/cluster", "recon_ray/data", "ops")
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def root_models() -> list[type[BaseModel]]:
    return [spec.load_config() for spec in JOBS.values()]


# -- Links ---------------------------------------------------------------------------------------
def anchors(text: str) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    titles = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", text))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        if "://" in name:
            continue
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_link_to_nothing_is_found(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# One: `two`\n[a](#one-two) [b](#three) [c](README.md#one-two) [d](x.md)\n")
    assert broken_links(page) == ["#three", "x.md"]


# -- Options -------------------------------------------------------------------------------------
def option_names(text: str) -> Iterator[str]:
    """Find the dotted names in the first column of tables."""
    sections = {key for model in root_models() for key in index(model).sections if key}
    for line in text.splitlines():
        if not line.lstrip().startswith("|"):
            continue
        for name in re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)`", line.split("|")[1]):
            if name.partition(".")[0] in sections:
                yield name


def test_option_names_are_found_in_tables_only() -> None:
    text = "`optim.no`\n| `optim.lr`, `run.name` | `data.x` |\n| `jobs/x.py` |\n| `torch.nn` |\n"
    assert list(option_names(text)) == ["optim.lr", "run.name"]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_option_in_a_table_exists(page: Path) -> None:
    known = {key for model in root_models() for key in index(model).keys}
    assert [name for name in option_names(page.read_text()) if name not in known] == []


# -- Commands ------------------------------------------------------------------------------------
def commands(text: str) -> Iterator[list[str]]:
    """Find the calls of jobs in blocks of code, and those that are named in a line of text.

    ``<set>`` is read as a word, ``[key=value]`` as given; arguments that end in ``...``, and files
    of a run that is named ``<so>``, are left to the reader.
    """
    lines = [
        line
        for block in re.findall(r"(?ms)^ *```\w*\n(.*?)^ *```", text)
        for line in re.sub(r"\\\n", " ", block).splitlines()
    ]
    plain = re.sub(r"(?ms)^ *```.*?^ *```", "", text)
    for line in (*lines, *(" ".join(span.split()) for span in re.findall(r"`([^`]+)`", plain))):
        found = re.search(r"(?:^|\s)(jobs/\w+\.py\b.*)", line)
        if found is None:
            continue
        words = shlex.split(re.sub(r"<(\w[^>]*)>", "WORD", found.group(1)), comments=True)
        words = [re.sub(r"^\[(.*)\]$", r"\1", word) for word in words]
        yield [word for word in words if not re.search(r"\.\.\.$|WORD.*\.yaml$", word)]


FOUND = (words for page in PAGES for words in commands(page.read_text()))
COMMANDS = sorted({shlex.join(words) for words in FOUND if len(words) > 1})


def test_commands_are_found_in_blocks_and_in_lines() -> None:
    block = "```bash\npython jobs/a.py x=1 \\\n  y=...   # z\n```\n"
    found = list(commands(f"{block}`jobs/b.py <a>/b.yaml [k=<set>]` `b.py`\n"))
    assert found == [["jobs/a.py", "x=1"], ["jobs/b.py", "k=WORD"]]
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job, *arguments = shlex.split(command)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [job, *arguments, "--print-config"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(job, run_name="__main__")
    problems = [
        line
        for line in capsys.readouterr().err.splitlines()
        if ": required (" not in line  # what the text leaves to the reader
    ]
    assert ended.value.code == 0 or problems == [], problems
