"""How long the viewer takes for pages of decisions, on a run with 100,000 of them.

    python -m bench.view                     about two minutes; the made-up run is kept in runs/bench-view
    python -m bench.view --decisions 20000 --json

Every time is that of a whole request on the same machine: guard, filter, page, HTML; words are searched anew each time.
`CPU` is the processor time that server and client took together, which other work on the machine hardly changes; `while
counting` are the same requests while every comparison is being settled in the background, as it is after the viewer
starts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from tests.report_fixture import make_run
from tests.view_fixture import Served, serving

RUN = "bench-view"
_PER_PROMPT = 8
"""Decisions that the made-up run takes for every prompt: two phases, two checks, one question in both orders."""
QUERIES = {
    "first page": "",
    "last page": "?page={last}",
    "one principle": "?principle=to-the-point",
    "principle and verdict": "?principle=to-the-point&verdict=a",
    "narrowest first": "?sort=narrowest&kind=judge",
    "changed sides": "?only=swapped",
    "ended as kept": "?ended=kept",
    "words, many hits": "?q=rinse%20it%20first",
    "words, no hit": "?q=no%20such%20words",
    "the beginning of an id": "?q=b2:00",
    "words, verdict, phase": "?q=winter&verdict=b&phase=rl",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    folder = made(arguments.folder / RUN, arguments.decisions)
    told = measure(folder, arguments.repeats)
    print(json.dumps(told, indent=1) if arguments.json else in_words(told))


def made(folder: Path, n_decisions: int) -> Path:
    """Return a run with so many decisions, made without any model; one that is there already is used again."""
    if not folder.exists():
        n = n_decisions // _PER_PROMPT
        prompts = [f"How do I fold sheet {i}, and why does bread go stale in winter {i % 97}?" for i in range(n + 40)]
        make_run(folder, n_train=n, n_held_out=30, prompts=prompts)
    return folder


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    """Return the times in milliseconds."""
    with serving(folder) as served:
        path = f"/runs/{folder.name}/decisions"
        start = time.perf_counter()
        total = served.get(f"/json{path}").json["total"]
        indexed = time.perf_counter() - start
        last = served.get(f"/json{path}").json["n_pages"]
        run = served.site.run(folder.name)
        assert run is not None
        queries = {name: path + query.format(last=last) for name, query in QUERIES.items()}
        early = {name: timed(served, q, 1) for name, q in queries.items() if "ended" not in q}
        while run.reckoning(patience_s=5) is None:
            pass
        times = {name: timed(served, query, repeats) for name, query in queries.items()}
        return {
            "decisions": total,
            "first_request_ms": round(1000 * indexed),
            "pages": {name: _row(found, early.get(name)) for name, found in times.items()},
        }


def _row(found: list[tuple[float, float]], early: list[tuple[float, float]] | None) -> dict[str, float | None]:
    walls, cpus = [wall for wall, _ in found], [cpu for _, cpu in found]
    return {
        "median_ms": round(statistics.median(walls), 1),
        "most_ms": round(max(walls), 1),
        "cpu_median_ms": round(statistics.median(cpus), 1),
        "cpu_most_ms": round(max(cpus), 1),
        "while_counting_ms": round(early[0][0], 1) if early else None,
    }


def timed(served: Served, path: str, repeats: int) -> list[tuple[float, float]]:
    """Return how long each of several requests took and how much processor time, in milliseconds."""
    found = []
    for i in range(repeats):
        asked = anew(path, i)
        start, used = time.perf_counter(), time.process_time()
        answer = served.get(asked)
        found.append((1000 * (time.perf_counter() - start), 1000 * (time.process_time() - used)))
        assert answer.status == 200, answer.text
    return found


def anew(path: str, number: int) -> str:
    """Return a request with its words in other cases of their letters, which finds the same but is not remembered."""
    head, sep, words = path.partition("?q=")
    words, *rest = words.split("&", 1)
    if not sep or words.startswith("b2:"):
        return path
    letters = [at for at, letter in enumerate(words) if letter.isalpha()]
    turned = {at for bit, at in enumerate(letters) if (number + 1) >> bit & 1}
    told = "".join(letter.upper() if at in turned else letter for at, letter in enumerate(words))
    return head + sep + "&".join([told, *rest])


def in_words(told: dict[str, Any]) -> str:
    """Return the figures as a table."""
    lines = [f"{told['decisions']:,} decisions; first request, which makes the index: {told['first_request_ms']} ms"]
    columns = ("median_ms", "most_ms", "cpu_median_ms", "cpu_most_ms", "while_counting_ms")
    heads = ("median", "most", "CPU median", "CPU most", "while counting")
    lines.append(f"{'':26}" + "".join(f"{head:>16}" for head in heads))
    for name, row in told["pages"].items():
        cells = ("" if row[column] is None else f"{row[column]:.0f} ms" for column in columns)
        lines.append(f"{name:26}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
