"""Storage that misbehaves on demand, in every process that has this folder on its path.

The file that ``RECON_SOAK_FAULT`` names says how, ``slow <seconds>`` or ``full``; without it
nothing is changed. Checkpoints are written with fsync: there a disk would be slow or full.
"""

import errno
import os
import time

_fsync = os.fsync


def _faulty(descriptor: int) -> None:
    try:
        with open(os.environ["RECON_SOAK_FAULT"]) as stream:  # noqa: PTH123 - loaded everywhere
            kind, _, amount = stream.read().partition(" ")
    except (OSError, KeyError):
        kind, amount = "", ""
    if kind == "slow":
        time.sleep(float(amount))
    elif kind == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _fsync(descriptor)


os.fsync = _faulty
