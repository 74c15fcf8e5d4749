"""Ray Train's cleaner, an actor that frees the workers' resources once their driver is gone.

Both functions run in every process of a job (``worker_process_setup_hook``).
"""

from __future__ import annotations

import logging
import os

import ray

CLEANER = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
#: Variable that says which cluster the queries go to.
ASKED = "RAY_API_SERVER_ADDRESS"
#: Address where nothing answers: the port of the discard service.
NOBODY = "http://127.0.0.1:9"


def quiet_cleaner() -> None:
    """Silence the cleaner in a cluster without dashboard.

    Works around: It queries the dashboard once a second, warns each time that there is no answer,
    and looks for clusters on this machine: with a second one it ends with a traceback in the
    terminal, or asks that one, which knows no such run, and frees the resources of a living run.
    What it would free goes with the local cluster.
    Seen on: Ray 2.60.0.
    Can go: When the cleaner does without the dashboard, or asks its own cluster and warns once.
    """
    logging.getLogger(CLEANER).setLevel(logging.ERROR)
    os.environ[ASKED] = NOBODY


def name_cluster() -> None:
    """Name this process's cluster to the cleaner's queries of the dashboard.

    Works around: Where several clusters run on one machine, the query goes to any of them, finds no
    controller, and the resources of a stopped run stay reserved, or a living one loses its own.
    Seen on: Ray 2.60.0.
    Can go: When the query takes the address from the process's own connection.
    """
    os.environ[ASKED] = ray.get_runtime_context().gcs_address
