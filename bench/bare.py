"""Bare clients: they send requests that a run has kept, hold the answers in memory and store nothing.

python -m bench.bare openai URL RUN [N]     chat completions of the kept judgments through the `openai` client
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

from cai import canon
from cai.store import schema

_IN_FLIGHT = 128


def judgments(run: Path, n: int) -> list[list[dict[str, str]]]:
    """Return the messages of the first `n` judgments that a run has kept."""
    connection = schema.connect(run / "store.sqlite", readonly=True)
    texts = dict(connection.execute("SELECT id, text FROM texts"))
    rows = connection.execute("SELECT request FROM calls WHERE kind = 'score' ORDER BY rowid")
    return [
        [{"role": role, "content": texts[id_]} for role, id_ in canon.loads(row[0])["messages"]]
        for row in islice(rows, n)
    ]


async def by_openai(url: str, conversations: list[list[dict[str, str]]]) -> tuple[float, float]:
    """Return the seconds and CPU seconds that the `openai` client takes for one chat completion each, 128 at once."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    source = iter(conversations)
    extra = {"add_generation_prompt": False, "continue_final_message": True}

    async def worker() -> None:
        for messages in source:
            answer = await client.chat.completions.create(
                model="scripted",
                messages=messages,  # type: ignore[arg-type]
                max_tokens=1,
                temperature=0,
                logprobs=True,
                top_logprobs=20,
                extra_body=extra,
            )
            assert answer.choices[0].logprobs is not None

    started, busy = time.monotonic(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(_IN_FLIGHT)))
    took = time.monotonic() - started, time.process_time() - busy
    await client.close()
    return took


def main(arguments: list[str]) -> dict[str, Any]:
    """Return what the command line asks for."""
    _, url, run, *n = arguments
    conversations = judgments(Path(run), int(n[0]) if n else 10**9)
    wall_s, cpu_s = asyncio.run(by_openai(url, conversations))
    return {"requests": len(conversations), "wall_s": wall_s, "cpu_s": cpu_s}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
