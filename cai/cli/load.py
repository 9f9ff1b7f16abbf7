"""Reading a config for a command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cai import shipped, yamlfile
from cai.config import RunConfig, config_dir


def load_config(path: str, overrides: Sequence[str]) -> tuple[RunConfig, Path]:
    """Return a config file's tree with overrides in place, and the folder its relative paths are also tried in."""
    found = shipped.find(path)
    loaded = yamlfile.load(found, RunConfig, overrides=list(overrides))
    return loaded.value, config_dir(found)
