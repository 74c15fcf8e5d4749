"""Times of the compiled point operations, as ``ops/bench.py`` prints them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from recon_ray.benchmarks.config import BenchmarkConfig
from recon_ray.errors import OpsError
from recon_ray.runs.folder import RunFolder

#: The benchmark lies beside its sources, not in a package.
SCRIPT = Path(__file__).resolve().parents[2] / "ops" / "bench.py"


def measure_ops(config: BenchmarkConfig, folder: RunFolder) -> tuple[dict[str, float], str]:
    """Time every operation in a separate process.

    Returns:
        By ``<row>/``: the time of ours, and by peer the time of others (``_us`` by CUDA events and
        graph replay on a GPU, ``_ms`` on a CPU); and the table.

    Raises:
        OpsError: If there is no checkout around this package, or the operations are not built.
    """
    del config, folder
    if not SCRIPT.is_file():
        raise OpsError(f"{SCRIPT}: not found; run this from a checkout of the repository")
    with tempfile.TemporaryDirectory(prefix="recon-ops-") as place:
        figures = Path(place) / "figures.json"
        command = [sys.executable, str(SCRIPT), "--json", str(figures)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip() or "no message").splitlines()[-1]
            raise OpsError(f"{SCRIPT.name}: it failed ({reason}); build the operations: make ops")
        rows = json.loads(figures.read_text())["rows"]
    metrics: dict[str, float] = {}
    for row in rows:
        for key, value in row.items():
            if isinstance(value, int | float):
                metrics[f"{row['name']}/{key}"] = float(value)
            elif isinstance(value, dict):
                unit = key.removeprefix("peers_")
                metrics |= {f"{row['name']}/{peer}_{unit}": float(v) for peer, v in value.items()}
    return metrics, done.stdout.rstrip()
