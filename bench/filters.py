"""What the filter for offensive answers finds of texts that people have labelled, and what it flags besides.

    python -m bench.filters --rows moderation_labelled.jsonl

Rows are JSONL with `prompt` (the text), `flagged` (whether people found harm in it) and `labels` (by kind of harm).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Measure and print JSON."""
    from cai.train.filters import offensive, personal

    parser = argparse.ArgumentParser(prog="python -m bench.filters", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", required=True)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.5, 0.8, 0.9])
    arguments = parser.parse_args(argv)
    rows = [json.loads(line) for line in Path(arguments.rows).read_text(encoding="utf-8").splitlines()]
    scores = offensive([row["prompt"] for row in rows])
    found = {"rows": len(rows), "flagged": sum(row["flagged"] for row in rows), "at": {}}
    for threshold in arguments.thresholds:
        hits = [row for row, score in zip(rows, scores, strict=True) if score >= threshold]
        by_kind: dict[str, list[bool]] = defaultdict(list)
        for row, score in zip(rows, scores, strict=True):
            for kind, label in row["labels"].items():
                if label:
                    by_kind[kind].append(score >= threshold)
        right = sum(row["flagged"] for row in hits)
        found["at"][threshold] = {
            "dropped": len(hits),
            "precision": round(right / len(hits), 3) if hits else None,
            "recall": round(right / found["flagged"], 3),
            "recall_by_kind": {kind: [sum(hit), len(hit)] for kind, hit in sorted(by_kind.items())},
        }
    found["personal_data"] = sum(personal(row["prompt"]) is not None for row in rows)
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
