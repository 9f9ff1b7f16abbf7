"""Which judge the workshop asks where no run names one, and where its answers are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cai import shipped, yamlfile
from cai.config import RunConfig, config_dir
from cai.model.fetch import cache_folder

FOLDER = ".workshop"
"""The folder beside the runs where the workshop keeps its calls. Runs look there as they look into each other."""
DEFAULT_JUDGE = "smollm2-135m-instruct"


def config_for(constitution: str, config: str | None, overrides: Sequence[str]) -> tuple[RunConfig, Path | None]:
    """Return the config whose judge is asked, and the folder its relative paths are also tried in.

    Without a config file it is the default: the embedded model in its shipped settings.
    """
    if config is not None:
        found = shipped.find(config)
        return yamlfile.load(found, RunConfig, overrides=list(overrides)).value, config_dir(found)
    tree = {
        "run": {"dir": "runs/workshop"},
        "constitution": constitution,
        "prompts": {"sources": [{"path": "none"}]},
        "models": {"policy": {"checkpoint": DEFAULT_JUDGE}},
        "phases": [{"name": "workshop"}],
    }
    loaded = yamlfile.read(json.dumps(tree), RunConfig, source_name="default config", overrides=list(overrides))
    return loaded.value, None


def workbench() -> Path:
    """Return the folder where calls are kept that belong to no run."""
    return cache_folder() / "workshop"
