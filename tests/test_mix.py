"""Training sets: rows in every format, counted, split by prompt, cleaned, and mixed in stated proportions."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from cai import canon
from cai.errors import UserError
from cai.train.files import DataFile
from cai.train.mix import Built, build
from cai.train.rows import load_answers, load_hh, load_pairs
from tests.training import message, write

TOPICS = "apples boats clocks drums engines forests gardens hills islands jars kites lamps maps nests oceans".split()


def pairs(n: int, about: str, seed: int = 0) -> list[dict[str, Any]]:
    """Return pairs on prompts that share few words."""
    dice = random.Random(f"{about}{seed}")
    rows = []
    for i in range(n):
        words = [f"{about}{i}", *(f"{dice.choice(TOPICS)}{dice.randrange(10**6)}" for _ in range(6))]
        rows.append({"prompt": " ".join(words), "chosen": f"yes {about} {i}", "rejected": f"no {about} {i}"})
    return rows


def file_of(tmp_path: Path, **changes: Any) -> DataFile:
    return DataFile.model_validate({"out": str(tmp_path / "out"), "pii": "keep", **changes})


def rows_of(built: Built, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (built.out / name).read_text().splitlines()]


# --- rows -------------------------------------------------------------------------------------------------------------


def test_every_trl_format_gives_the_same_pair(tmp_path: Path) -> None:
    asked, good, bad = message("why?"), message("because", "assistant"), message("no", "assistant")
    rows = [
        {"prompt": asked, "chosen": good, "rejected": bad},
        {"prompt": "why?", "chosen": "because", "rejected": "no"},
        {"chosen": asked + good, "rejected": asked + bad},
    ]
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(canon.dumps(r) + b"\n" for r in rows)))
    found = load_pairs(path)
    assert len({(r.id, r.chosen, r.rejected, str(r.prompt), r.p_chosen) for r in found}) == 1
    (tmp_path / "cut.jsonl.gz").write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="not a whole gzip file"):
        load_pairs(tmp_path / "cut.jsonl.gz")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": message("a"), "rejected": message("b")}, "whole conversations, two messages or more"),
        (
            {"chosen": message("a") + message("x", "assistant"), "rejected": message("b") + message("y", "assistant")},
            "differ before their last message",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "weight": -1}, "'weight' must be a number of 0 or more"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "1"}, "'margin' must be a number"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "votes": {"kind": 2}}, "'kind' must be a number from 0 to 1"),
    ],
)
def test_a_row_that_is_no_pair_is_named(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(UserError, match=said):
        load_pairs(path)


def test_votes_come_from_the_provenance_and_point_at_the_chosen_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c", "p_chosen": 0.8}] * 2)
    votes = [{"principle": "kind", "stand": "votes", "p_a": 0.9}]
    votes += [{"principle": "brief", "stand": "abstains", "p_a": 0.4}]
    told = [{"pair_id": f"b2:{arm}", "chosen_arm": arm, "label_source": "judge", "votes": votes} for arm in "ab"]
    write(tmp_path / "provenance.jsonl", told)
    a, b = load_pairs(path)
    assert a.votes == {"kind": 0.9} and b.votes == {"kind": pytest.approx(0.1)}
    assert (a.id, a.label_source, a.p_chosen) == ("b2:a", "judge", 0.8)
    again = load_pairs(write(tmp_path / "copy.jsonl", [a.as_dict(), b.as_dict()]))
    assert again == [a, b]


def test_hh_transcripts_that_compare_nothing_are_counted(tmp_path: Path) -> None:
    start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant:"
    rows = [
        {"chosen": f"{start} because", "rejected": f"{start} no\n\nnever"},
        {"chosen": f"{start} same", "rejected": f"{start} same"},
        {"chosen": f"{start} x", "rejected": f"{start}"},
        {"chosen": f"{start} x", "rejected": "\n\nHuman: other\n\nAssistant: x"},
        {"chosen": f"{start} x\n\nHuman: bye", "rejected": f"{start} y"},
    ]
    found, unusable = load_hh(write(tmp_path / "hh.jsonl", rows))
    assert [(r.prompt[-1]["content"], r.chosen, r.rejected, len(r.prompt)) for r in found] == [
        ("why?", "because", "no\n\nnever", 3)
    ]
    assert unusable == {
        "equal answers": 1,
        "empty answer": 1,
        "conversations differ before the answers": 1,
        "no answer": 1,
    }
    assert load_pairs(write(tmp_path / "one.jsonl", rows[:1])) == found, "a training reads transcripts as they are"
    with pytest.raises(UserError, match="one.jsonl:2: transcripts that compare nothing: equal answers; `cai data"):
        load_pairs(write(tmp_path / "one.jsonl", rows[:2]))
    with pytest.raises(UserError, match="hh.jsonl:2: found"):
        load_hh(write(tmp_path / "hh.jsonl", [rows[0], {"chosen": "text", "rejected": "text"}]))


def test_a_saved_dataset_is_read_as_its_rows_are(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = pairs(4, "x")
    told = [*({**row, "margin": None} for row in rows[:3]), {**rows[3], "margin": 0.5}]
    Dataset.from_list(told).save_to_disk(tmp_path / "one")
    assert [(r.chosen, r.margin) for r in load_pairs(tmp_path / "one")] == [
        *((row["chosen"], 0.0) for row in rows[:3]),
        (rows[3]["chosen"], 0.5),
    ]
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(tmp_path / "many")
    assert len(load_pairs(tmp_path / "many")) == 4
    DatasetDict({"test": Dataset.from_list(rows)}).save_to_disk(tmp_path / "other")
    with pytest.raises(UserError, match="found no split 'train', only test"):
        load_pairs(tmp_path / "other")
    with pytest.raises(UserError, match="not a folder saved by datasets"):
        load_pairs(tmp_path)


def test_a_source_may_name_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", pairs(6, "x"))
    write(tmp_path / "set" / "test.jsonl", [*pairs(2, "y"), {**pairs(1, "z")[0], "chosen": ""}])
    source = {"name": "named", "dataset": str(tmp_path / "set")}
    built = build(file_of(tmp_path, sources=[source], held_out=0.0))
    assert built.counts["named"]["read"] == built.counts["named"]["train"] == 6
    with pytest.raises(UserError, match=r"set\[test\]:3: 'chosen' must be"):
        build(file_of(tmp_path, sources=[{**source, "split": "test"}]))
    with pytest.raises(UserError, match=r"set\[validation\]: cannot be loaded .*check name, split and network"):
        build(file_of(tmp_path, sources=[{**source, "split": "validation"}]))
    with pytest.raises(ValueError, match="exactly one of 'path' and 'dataset'"):
        file_of(tmp_path, sources=[{**source, "path": "x.jsonl"}])


def test_answers_to_score_are_read_from_either_kind_of_row(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "response": "b"}, {"prompt": message("a"), "completion": "c"}, pairs(1, "x")[0]]
    assert [r.answers for r in load_answers(write(tmp_path / "a.jsonl", rows))] == [["b"], ["c"], ["yes x 0", "no x 0"]]
    with pytest.raises(UserError, match="a.jsonl:1: found no 'response'"):
        load_answers(write(tmp_path / "a.jsonl", [{"prompt": "a"}]))


# --- sets -------------------------------------------------------------------------------------------------------------


def test_rows_add_up_and_proportions_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "human.jsonl", pairs(300, "help"))
    write(tmp_path / "judge.jsonl", [*pairs(200, "harm"), *pairs(5, "harm")])
    sources = [
        {"name": "human", "path": str(tmp_path / "human.jsonl"), "share": 1},
        {"name": "judge", "path": str(tmp_path / "judge.jsonl"), "share": 3},
    ]
    built = build(file_of(tmp_path, sources=sources, rows=120, held_out=0.2))
    for name, count in built.counts.items():
        assert sum(v for k, v in count.items() if k != "read") == count["read"], name
    assert built.counts["judge"]["duplicate"] == 5
    rows = rows_of(built, "preference.train.jsonl")
    assert [sum(r["source"] == name for r in rows) for name in ("human", "judge")] == [30, 90]
    assert built.sets["preference"]["train"]["by_source"] == {"human": 30, "judge": 90}
    asked = {r["prompt"][0]["content"] for r in rows}
    assert asked.isdisjoint(r["prompt"][0]["content"] for r in rows_of(built, "preference.held_out.jsonl"))
    content = (built.out / "preference.train.jsonl").read_bytes()
    assert built.sets["preference"]["train"]["id"] == canon.id_of_bytes(content)
    again = build(file_of(tmp_path, sources=sources, rows=120, held_out=0.2))
    assert again.sets == built.sets and json.loads((built.out / "data.json").read_text())["counts"] == built.counts
    with pytest.raises(UserError, match="source 'judge': .* rows are left, but its share of the preference set asks"):
        build(file_of(tmp_path, sources=sources, rows=400))


def test_without_rows_as_many_are_taken_as_the_shares_allow(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", pairs(40, "a"))
    write(tmp_path / "b.jsonl", pairs(100, "b"))
    sources = [{"name": name, "path": str(tmp_path / f"{name}.jsonl"), "share": 1} for name in "ab"]
    built = build(file_of(tmp_path, sources=sources, held_out=0.0))
    assert built.sets["preference"]["train"]["by_source"] == {"a": 40, "b": 40}


def test_prompts_like_those_of_an_evaluation_set_are_dropped(tmp_path: Path) -> None:
    rows = pairs(60, "a")
    write(tmp_path / "a.jsonl", rows)
    close = [{"prompt": f"Please: {row['prompt'].upper()}!"} for row in rows[:20]]
    write(tmp_path / "bench.jsonl", [*close, {"prompt": "something else entirely"}])
    sources = [{"name": "a", "path": str(tmp_path / "a.jsonl")}]
    built = build(file_of(tmp_path, sources=sources, keep_out=[{"path": str(tmp_path / "bench.jsonl")}], held_out=0.0))
    assert built.reasons["a"] == {f"dropped: near duplicate of {tmp_path / 'bench.jsonl'}": 20}
    assert built.sets["preference"]["train"]["rows"] == 40


def test_kinds_are_versioned_apart(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", pairs(10, "p"))
    write(tmp_path / "s.jsonl", pairs(10, "s"))
    said = [{"prompt": message(f"q{i} z{i}"), "completion": "a", "id": f"r{i}"} for i in range(10)]
    write(tmp_path / "f.jsonl", said)
    sources = [
        {"name": "p", "path": str(tmp_path / "p.jsonl")},
        {"name": "s", "path": str(tmp_path / "s.jsonl"), "kind": "safety"},
        {"name": "f", "path": str(tmp_path / "f.jsonl"), "kind": "sft"},
    ]
    first = build(file_of(tmp_path, sources=sources, held_out=0.0)).sets
    write(tmp_path / "s.jsonl", pairs(11, "s"))
    second = build(file_of(tmp_path, sources=sources, held_out=0.0)).sets
    assert {k for k in first if first[k]["train"]["id"] != second[k]["train"]["id"]} == {"safety"}
    assert set(first) == {"preference", "safety", "sft"}


def test_shares_are_given_to_all_sources_of_a_kind_or_to_none(tmp_path: Path) -> None:
    sources = [{"name": "a", "path": "a", "share": 1}, {"name": "b", "path": "b"}]
    with pytest.raises(ValueError, match="give all of them one"):
        file_of(tmp_path, sources=sources)


# --- filters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jane.roe@mail.example-corp.com please", "e-mail address"),
        ("write to jane@example.com or a@b.test", None),
        ("card 4111 1111 1111 1111, thanks", "payment card"),
        ("card 4111 1111 1111 1112, thanks", None),
        ("1000000000000000 grains", None),
        ("pay to DE89 3704 0044 0532 0130 00 today", "IBAN"),
        ("pay to DE88 3704 0044 0532 0130 00 today", None),
        ("my number is 219-09-9999", "social security number"),
        ("from 8.8.8.8 it came", "IP address"),
        ("from 192.168.1.1, version 1.2.3.4.5, it came", None),
        ("In 1999 there were 30 of 45", None),
    ],
)
def test_personal_data_that_has_a_pattern_is_found(text: str, kind: str | None) -> None:
    pytest.importorskip("phonenumbers")
    from cai.train.filters import personal

    assert personal(text) == kind


def test_telephone_numbers_are_found_and_other_figures_are_not() -> None:
    pytest.importorskip("phonenumbers")
    from cai.train.filters import personal

    assert personal("call me at (650) 253-0000") == "telephone number"
    assert personal("ring +44 20 7031 3000 now") == "telephone number"
    assert personal("the years 1914-1918 and 1939-1945 took 12,345,678 lives") is None


def test_filters_count_what_they_drop(tmp_path: Path) -> None:
    pytest.importorskip("phonenumbers")
    pytest.importorskip("profanity_check")
    rows = pairs(12, "a")
    rows[0]["rejected"] = "mail bob@corp-of-bob.com"
    rows[1]["chosen"] = "you fucking idiot, shut the fuck up"
    rows[2]["rejected"] = "you fucking idiot, shut the fuck up"
    write(tmp_path / "a.jsonl", rows)
    sources = [{"name": "a", "path": str(tmp_path / "a.jsonl")}]
    built = build(file_of(tmp_path, sources=sources, held_out=0.0, pii="drop", toxicity=0.8))
    assert built.reasons["a"] == {"dropped: offensive answer": 1, "dropped: personal data: e-mail address": 1}


def test_a_filter_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from cai.train import filters

    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[filters\]', or set pii: keep"):
        filters.personal("call 650 253 0000")
