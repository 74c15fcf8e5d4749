"""Options of the jobs: what they are, where they come from, and what is wrong with them."""

from __future__ import annotations

from recon_ray.config.help import dump_yaml, format_help
from recon_ray.config.loader import Loaded, load, override

__all__ = ["Loaded", "dump_yaml", "format_help", "load", "override"]
