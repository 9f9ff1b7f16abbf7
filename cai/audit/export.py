"""export: decisions, pairs, calls and reviews as Parquet or JSON lines, or as annotated pairs.

Decisions carry the OpenTelemetry names of evaluations (`gen_ai.evaluation.*`) beside our own, so that they can go
where traces go. User and password of any URL are taken out, and any value of the environment that a config names as a
key, before anything is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai import __version__, canon
from cai.audit.views import VIEWS, Views
from cai.errors import UserError
from cai.manifest import apart, now, write_atomically
from cai.report.collect import redacted
from cai.trail import RunView

TABLES = tuple(VIEWS)
"""What `parquet` and `jsonl` write, one file each."""
_OPEN_TELEMETRY = {
    "gen_ai.evaluation.name": "principle_id",
    "gen_ai.evaluation.score.value": "p_a",
    "gen_ai.evaluation.score.label": "verdict",
    "error.type": "reason",
}
"""Attributes of OpenTelemetry's event `gen_ai.evaluation.result`, by the column that says the same here."""
_LEAST_SECRET = 8
"""A shorter value of a key variable is too common a text to be taken out everywhere."""


class Redactor:
    """Takes secrets out of texts: credentials in URLs, and the values of the key variables a config names."""

    def __init__(self, run: RunView) -> None:
        names = set(_key_variables(run.config_tree))
        self._secrets = [v for n in names if len(v := os.environ.get(n, "")) >= _LEAST_SECRET]

    def __call__(self, value: Any) -> Any:
        """Return a value without secrets."""
        if not isinstance(value, str):
            return value
        text = redacted(value) if "://" in value else value
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text


def _key_variables(tree: Any) -> Iterator[str]:
    """Yield the names of the environment variables that a config names as keys, of whichever model."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == "api_key_env" and isinstance(value, str):
                yield value
            else:
                yield from _key_variables(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _key_variables(value)


def export(folder: str | Path, form: str, out: str | Path) -> dict[str, Any]:
    """Write the export and return `files` with their rows. `form` is `parquet`, `jsonl` or `annotated-pairs`."""
    place = apart(Path(out))
    with RunView(folder) as run:
        if form != "annotated-pairs":
            return {"files": _tables(run, form, place)}
        if place.is_dir():
            raise UserError(f"{place}: is a folder; annotated pairs are one file, such as {place / 'pairs.json'}")
        tree = annotated_pairs(run)
        write_atomically(place, json.dumps(tree, ensure_ascii=False, indent=1))
        return {"files": {str(place): len(tree["comparisons"])}}


def _tables(run: RunView, form: str, place: Path) -> dict[str, int]:
    """Write one file per table and `about.json` into a folder; return the rows by file."""
    if place.is_file():
        raise UserError(f"{place}: is a file; {form} writes a folder of tables")
    clean, files = Redactor(run), dict[str, int]()
    with Views(run) as views:
        for name in TABLES:
            rows = [{k: clean(v) for k, v in row.items()} for row in table(views, name)]
            path = place / f"{name}.{form}"
            if form == "parquet":
                from cai.audit.frames import write_parquet

                write_parquet(path, rows, views.columns(name))
            else:
                write_atomically(path, b"".join(canon.dumps(row) + b"\n" for row in rows))
            files[str(path)] = len(rows)
    about = {"schema": 1, "cai_version": __version__, "written": now(), "run": run.manifest.get("name"),
             "config_id": run.manifest["config_id"], "constitution_id": run.manifest["constitution"]["id"],
             "rows": {Path(p).stem: n for p, n in files.items()}}  # fmt: skip
    write_atomically(place / "about.json", json.dumps(about, indent=1))
    return files


def table(views: Views, name: str) -> Iterator[dict[str, Any]]:
    """Yield a table's rows by column; decisions also by OpenTelemetry's names: the score is that of arm a."""
    sql = "SELECT id, json_extract(body, '$.a_id') FROM store.records WHERE tag = 'comparison'"
    arms = dict(views.query(sql).rows) if name == "decisions" else {}
    for row in views.query(f"SELECT * FROM {name}").dicts():
        if name == "decisions":
            row |= {otel: row[column] for otel, column in _OPEN_TELEMETRY.items()}
            row["gen_ai.evaluation.explanation"] = row["reasoning"] or row["reason"]
            row["gen_ai.response.id"] = arms.get(row["pair_id"])
            row["event.name"] = "gen_ai.evaluation.result"
        yield row


# -- annotated pairs -------------------------------------------------------------------------------------------------


def annotated_pairs(run: RunView) -> dict[str, Any]:
    """Return the run as annotated pairs 2.0 (Inverse Constitutional AI, Feedback Forensics).

    One annotator for the label in effect (the default), one per principle, one per principle and order, one per
    reviewer.
    """
    with Views(run) as views:
        return _annotated(run, views)


def _annotated(run: RunView, views: Views) -> dict[str, Any]:
    clean = Redactor(run)
    annotators: dict[str, dict[str, str]] = {
        "effective": {"name": "effective label", "description": "what is trained on", "type": "unknown"}
    }
    for p in run.constitution.principles:
        text = p.compare or f"check: {p.title}"
        annotators[f"principle:{p.id}"] = {"name": p.id, "description": text, "type": "principle"}
    pairs = {row["pair_id"]: row for row in views.query("SELECT * FROM pairs").dicts()}
    told: dict[str, dict[str, Any]] = {id_: {"effective": _pref(r["label"], r["state"])} for id_, r in pairs.items()}
    for row in views.query("SELECT * FROM votes").dicts():
        told[row["pair_id"]][f"principle:{row['principle_id']}"] = _pref(row["label"], row["stand"])
    for row in views.query("SELECT * FROM decisions WHERE counts AND mode <> 'check' ORDER BY seq").dicts():
        if row["pair_id"] in told:
            name = f"judge:{row['principle_id']}:{row['order']}"
            about = f"{row['judge']}, '{row['principle_id']}', order {row['order']}"
            annotators.setdefault(name, {"name": name, "description": str(clean(about)), "type": "unknown"})
            told[row["pair_id"]][name] = _pref(row["verdict"], row["reason"] or row["verdict"])
    for row in views.query("SELECT * FROM reviews WHERE holds AND repeats IS NULL AND principle_id IS NULL").dicts():
        if row["pair_id"] in told:
            name = f"human:{row['reviewer']}"
            annotators.setdefault(name, {"name": row["reviewer"], "description": "reviewer", "type": "human"})
            told[row["pair_id"]][name] = _pref(row["label"], row["choice"])
    return {
        "metadata": {
            "version": "2.0",
            "description": f"preferences of the run '{run.manifest.get('name')}'",
            "created_at": now(),
            "dataset_name": str(run.manifest.get("name")),
            "default_annotator": "effective",
            "available_metadata_keys_per_comparison": ["phase", "source", "domain", "label_source"],
        },
        "annotators": annotators,
        "comparisons": [
            {
                "id": id_,
                "prompt": row["prompt"],
                "response_a": {"text": row["a"], "model": clean(row["author_a"])},
                "response_b": {"text": row["b"], "model": clean(row["author_b"])},
                "annotations": told[id_],
                "metadata": {k: row[k] for k in ("phase", "source", "domain", "label_source")},
            }
            for id_, row in pairs.items()
        ],
    }


def _pref(label: str | None, why: str | None) -> dict[str, Any]:
    if label in ("a", "b"):
        return {"pref": label}
    return {"pref": None, "no_pref_reason": "tie" if label == "tie" else why or "not_applicable"}
