"""ScanObjectNN: scans of real objects in HDF5, in three variants."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recon_ray.data.format.files import visible
from recon_ray.data.sources.base import Item, Listing, Sample
from recon_ray.data.sources.cards import CARDS
from recon_ray.data.sources.hdf5_set import list_rows, load_row
from recon_ray.data.sources.layout import published_listing
from recon_ray.errors import DataError

WITH_BACKGROUND, WITHOUT_BACKGROUND = "main_split", "main_split_nobg"
#: Folder and end of the file names of every variant.
FILES = {
    "scanobjectnn_obj_bg": (WITH_BACKGROUND, "objectdataset.h5"),
    "scanobjectnn_obj_only": (WITHOUT_BACKGROUND, "objectdataset.h5"),
    "scanobjectnn_pb_t50_rs": (WITH_BACKGROUND, "objectdataset_augmentedrot_scale75.h5"),
}


@dataclass(frozen=True)
class ScanObjectNNSource:
    """One variant of ScanObjectNN.

    Attributes:
        folder: The publishers' root, a folder above it, or the variant's own folder.
        name: Which variant; a key of :data:`FILES`.
    """

    folder: Path
    name: str = "scanobjectnn_pb_t50_rs"

    def scan(self) -> Listing:
        """List the scans of the variant.

        Raises:
            DataError: If its two files are not there or damaged.
        """
        folder, card = Path(self.folder), CARDS[self.name]
        files = self._files(folder)
        entries, _ = list_rows(folder, files, card.classes, card.classes)
        return published_listing(card, entries)

    def load(self, item: Item) -> Sample:
        """Read one scan."""
        return load_row(Path(self.folder), item)

    def _files(self, folder: Path) -> dict[str, list[Path]]:
        """Find the two files.

        Raises:
            DataError: If one is missing, or the folder is that of another variant.
        """
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; set input to the folder of the data set")
        variant, end = FILES[self.name]
        names = {"train": f"training_{end}", "test": f"test_{end}"}
        own = [] if folder.name in {WITH_BACKGROUND, WITHOUT_BACKGROUND} - {variant} else [folder]
        places = [*own, folder / variant, *visible(folder, f"*/{variant}")]
        for place in places:
            found = {split: place / name for split, name in names.items()}
            there = [path.is_file() for path in found.values()]
            if all(there):
                return {split: [path] for split, path in found.items()}
            if any(there):
                absent = next(path for path in found.values() if not path.is_file())
                raise DataError(f"{absent}: file not found; both splits are needed")
        raise DataError(
            f"{folder}: expected {variant}/{names['train']} and {names['test']} for {self.name}; "
            "found neither"
        )
