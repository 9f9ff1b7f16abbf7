"""Strict YAML for everything people edit: constitutions and run configurations.

loaded = yamlfile.load("configs/quickstart.yaml", RunConfig, overrides=["run.seed=1"])
loaded.value, loaded.position(("phases", 0, "samples")), loaded.where("run.seed"), loaded.sources

problems   what is wrong, and the error that carries all of it
scalars    what an unquoted value means
syntax     the parser's complaints in our words
tree       bytes to nodes with positions
shapes     what a model expects at a path
messages   pydantic's complaints in our words
overrides  `a.b=c`
reader     all of it together
"""

from cai.yamlfile.overrides import apply_overrides
from cai.yamlfile.problems import COMMAND_LINE, Finding, Problem, ProblemsError, dotted, in_order, quoted, refusal
from cai.yamlfile.reader import Loaded, load, read
from cai.yamlfile.shapes import nearest

__all__ = [
    "COMMAND_LINE",
    "Finding",
    "Loaded",
    "Problem",
    "ProblemsError",
    "apply_overrides",
    "dotted",
    "in_order",
    "load",
    "nearest",
    "quoted",
    "read",
    "refusal",
]
