"""Reading of golden packs: stored outputs of the reference for weights made by a formula."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

PARTSEG_SALT = 31  # of the one pack whose json has no configuration
GOLDEN = Path(__file__).parents[1] / "golden"


@dataclass(frozen=True)
class Pack:
    """One NAME.npz with its NAME.json."""

    path: Path
    meta: dict = field(hash=False, compare=False)
    names: tuple[str, ...] = field(hash=False, compare=False)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def kind(self) -> str:
        """The family of models the pack belongs to."""
        classes = self.meta["state_dict_shapes"]
        if "visual.proj" in classes:
            return "clip"
        if "pre_logits.fc.weight" in classes:
            return "vit"
        if "ReCon" in classes:
            return "recon"
        if "PartSegmentation" in classes:
            return "partseg"
        return "reconpp" if any(name.startswith("ReCon2") for name in classes) else "other"

    def array(self, name: str) -> np.ndarray:
        with np.load(self.path) as arrays:
            return arrays[name]

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.array(name))

    @property
    def shapes(self) -> dict[str, Any]:
        """Shapes of the state dict, of each class where a pack has several."""
        return self.meta["state_dict_shapes"]

    def weights(self, model_class: str | None = None) -> dict[str, torch.Tensor]:
        """Make the reference's state dict (of one of its classes) by the formula."""
        shapes = self.shapes if model_class is None else self.shapes[model_class]
        salt = self.meta.get("config", {"salt": self.meta.get("salt", PARTSEG_SALT)})["salt"]
        return {key: formula_weight(key, tuple(shape), salt) for key, shape in shapes.items()}


def formula_weight(key: str, shape: tuple[int, ...], salt: int) -> torch.Tensor:
    """Return the value that the packs' formula assigns to a reference key."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    generator = np.random.default_rng([zlib.crc32(key.encode()), salt])
    z = generator.standard_normal(shape).astype(np.float32)
    if key == "logit_scale":
        value = 4.6
    elif key.endswith("running_var"):
        value = 0.5 + np.abs(z)
    elif len(shape) == 1 and key.endswith("weight"):
        value = 1 + 0.1 * z
    elif len(shape) >= 2:
        value = z * np.float32(0.5 / np.sqrt(np.prod(shape[1:])))
    else:
        value = 0.1 * z
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def find_packs() -> list[Pack]:
    """Find the packs of the repository and of the folders in RECON_GOLDEN_DIR (colon separated)."""
    extra = [Path(part) for part in os.environ.get("RECON_GOLDEN_DIR", "").split(":") if part]
    packs: dict[tuple[str, bytes], Pack] = {}
    for folder in [GOLDEN, *extra]:
        for path in sorted(folder.glob("*.npz")):
            description = path.with_suffix(".json")
            if not description.is_file():
                continue
            meta = json.loads(description.read_text())
            if "state_dict_shapes" not in meta:
                continue
            with np.load(path) as arrays:
                names = tuple(arrays.files)
            # The same pack in two folders is tested once.
            packs.setdefault((path.stem, description.read_bytes()), Pack(path, meta, names))
    return list(packs.values())
