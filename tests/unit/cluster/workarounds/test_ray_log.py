"""Loggers of Ray Data that are quieted."""

from __future__ import annotations

import importlib
import logging

import pytest

from recon_ray.cluster.workarounds.ray_log import LEVELS, quiet_ray_data


@pytest.mark.parametrize("name", LEVELS)
def test_each_logger_still_belongs_to_a_module_of_ray(name: str) -> None:
    importlib.import_module(name)


def test_warnings_of_progress_bars_are_not_logged() -> None:
    quiet_ray_data()
    assert not logging.getLogger("ray.data._internal.progress").isEnabledFor(logging.WARNING)
    assert logging.getLogger("ray.data.other").isEnabledFor(logging.WARNING)
