"""A model server without a model: vLLM's HTTP API, answered by rule, the same way every time.

    python -m cai.engine.scripted --port 8000 --judge shorter --latency-ms 20 --faults '503:0.05,retry-after=0.2'

Tests, `configs/scripted.yaml` and the benchmarks stand on it. Read `asking.py` first; `model.py` is what it
says, `rules.py` how it judges, `faults.py` what it does wrong on purpose, `wire.py` the HTTP below.
"""

from __future__ import annotations

from cai.engine.scripted.asking import Script
from cai.engine.scripted.server import ScriptedProcess, ScriptedServer

__all__ = ["Script", "ScriptedProcess", "ScriptedServer"]
