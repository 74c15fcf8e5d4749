"""The report of a sweep: one page that loads nothing, opened in a browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recon_ray.sweeps.report import SweepStory, report_page
from recon_ray.sweeps.tables import TrialRow, spreads
from recon_ray.sweeps.trial_folders import TrialFolders

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH = 1280


def page(folder: Path, **more: object) -> str:
    """Six finished trials with curves, one stopped, one failed."""
    folders, rows = TrialFolders(str(folder)), []
    for number in range(6):
        name, values = f"t{number}", {"optim.lr": 10.0**-number, "train.tune": "a <b> & c"}
        metrics = {"accuracy": number / 10}
        rows.append(TrialRow(name, values, "done", metrics, seconds=2.0))
        records = [{"step": s, "epoch": 0, "train/loss": 1 / (s + number)} for s in range(1, 9)]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        folders.folder(name).write("metrics.jsonl", lines)
    varied = {"optim.lr": 1.0, "train.tune": "full"}
    rows.append(TrialRow("t6", varied, "stopped", epoch=3, reason="0.2 < 0.4"))
    rows.append(
        TrialRow("<t7>", {"optim.lr": 2.0, "train.tune": "full"}, "failed", error="no & no")
    )
    story = SweepStory(
        title="Sweep <b>",
        job="finetune",
        metric="accuracy",
        selection="last epoch & nothing else",
        config="job: <finetune>\n",
        rows=rows,
        groups=spreads(rows, "accuracy"),
        **more,
    )
    return report_page(folder, folders, story)


def test_the_report_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "<title>Sweep &lt;b&gt;</title>" in text
    assert "<p>8 trials of jobs/finetune.py: 6 done, 1 failed, 1 stopped.</p>" in text
    assert "last epoch &amp; nothing else" in text
    assert '<p class="bad">&lt;t7&gt; failed: no &amp; no</p>' in text
    assert "Trials that were stopped early are left out" in text
    assert '<td class="text">stopped after epoch 3: 0.2 &lt; 0.4</td>' in text
    assert '<td class="text">no &amp; no</td>' in text
    assert "<pre>job: &lt;finetune&gt;\n</pre>" in text
    assert "<td>a &lt;b&gt; &amp; c</td>" in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert "<script" not in text
    assert text.count("data:image/png;base64,") == 3  # two options, one curve
    assert text.count('class="mark"') == 1


def test_a_summary_of_its_own_has_columns_of_text_and_remarks(tmp_path: Path) -> None:
    picture = tmp_path / "own.png"
    Image.new("RGB", (4, 4)).save(picture)
    text = page(
        tmp_path,
        summary=(["", "notes"], [["svm", "stand-in, scaled down"]]),
        texts=(1,),
        notes=["[1] <none>"],
        figures=[("ours", picture)],
    )
    assert '<td class="text">stand-in, scaled down</td>' in text
    assert '<p class="note">[1] &lt;none&gt;</p>' in text
    assert text.count("data:image/png;base64,") == 2  # its own, one curve
    assert 'class="mark"' not in text


def test_the_report_is_readable_in_a_browser(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    source, picture = tmp_path / "report.html", tmp_path / "report.png"
    source.write_text(page(tmp_path))
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={WIDTH},1400",
        f"--screenshot={picture}", source.as_uri(),
    ]  # fmt: skip
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape[1] == WIDTH
    # Nothing reaches beyond the page's margins, and both charts stand side by side.
    assert (pixels[:, -8:] > 235).all()
    dark = (pixels < 128).sum(axis=0)
    assert dark[100 : WIDTH // 2].sum() > 1000
    assert dark[WIDTH // 2 : WIDTH - 100].sum() > 1000
