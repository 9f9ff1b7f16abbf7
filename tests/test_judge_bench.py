"""Agreement with people: every shape of data is read, the figures are right, and a judge by position is called one."""

from __future__ import annotations

import gzip
import json
import math
import random
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from cai.assay import curves, effects, plot, reliability
from cai.assay.asking import Said, letter
from cai.assay.bench import Row, leaning, marks, measure, two_sided
from cai.assay.labelled import Labelled, as_prompt, from_any, read
from cai.errors import UserError
from cai.promptrows import Malformed
from cai.records import Judgment
from cai.stages.settle import Asked, settle
from tests import runs

LABELLED = {"id": "x-1", "source": "s", "subset": "t", "prompt": "Why?", "response_a": "one", "response_b": "two",
            "label": "B", "messages": None, "annotators": ["B", "B", "tie"]}  # fmt: skip
LLMBAR = {"input": "Why?", "output_1": "one", "output_2": "two", "label": 1}
HH = {"chosen": "\n\nHuman: Why?\n\nAssistant: good", "rejected": "\n\nHuman: Why?\n\nAssistant: bad"}
PREFERENCE = {"prompt": "Why?", "chosen": "good", "rejected": "bad", "subset": "math", "id": 7}
MESSAGES = {"prompt": [{"role": "user", "content": "Why?"}], "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}]}  # fmt: skip

WHOLE = {key: [*MESSAGES["prompt"], *MESSAGES[key]] for key in ("chosen", "rejected")}
LISTS = {"prompt": "Why?", "chosen": ["good"], "rejected": ["bad"], "num_correct": 1}
SHAPES = {"ours": LABELLED, "llmbar": LLMBAR, "hh": HH, "rb": PREFERENCE, "rb lists": LISTS, "trl": MESSAGES,
          "trl without prompt": WHOLE}  # fmt: skip


@pytest.mark.parametrize("row", SHAPES.values(), ids=SHAPES)
def test_every_shape_is_read(row: dict) -> None:
    pair = from_any(row, 1)
    better = {"a": pair.text_a, "b": pair.text_b}[pair.label]
    assert better in ("good", "two", "one") and [m.content for m in pair.prompt.messages] == ["Why?"]


def test_what_a_file_tells_besides_is_kept() -> None:
    pair = from_any(LABELLED, 1)
    assert (pair.id, pair.subset, pair.raters, pair.label) == ("x-1", "s · t", ("b", "b", "tie"), "b")


def test_the_better_answer_stands_on_either_side() -> None:
    sides = {from_any({"prompt": "Why?", "chosen": f"good {i}", "rejected": f"bad {i}"}, i).label for i in range(40)}
    assert sides == {"a", "b"}


def test_conversations_of_an_hh_row_stay_whole() -> None:
    before = "\n\nHuman: Hello\n\nAssistant: Hi\n\nHuman: Why?"
    pair = from_any({"chosen": f"{before}\n\nAssistant: good", "rejected": f"{before}\n\nAssistant: bad"}, 1)
    assert [m.role for m in pair.prompt.messages] == ["user", "assistant", "user"]


MALFORMED: list[Any] = [
    {},
    [],
    "x",
    {"prompt": "Why?"},
    LABELLED | {"label": "C"},
    LABELLED | {"label": None},
    LABELLED | {"label": []},
    LABELLED | {"response_a": None},
    LABELLED | {"prompt": ""},
    HH | {"chosen": "good"},
    HH | {"rejected": "\n\nHuman: Who?\n\nAssistant: bad"},
    PREFERENCE | {"chosen": 3},
]


@pytest.mark.parametrize("row", MALFORMED)
def test_a_malformed_row_says_what_was_found(row: Any) -> None:
    with pytest.raises(Malformed, match="found"):
        from_any(row, 1)


def test_files_are_read_as_lines_as_a_list_and_packed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(LABELLED) + "\n\n" + json.dumps(LLMBAR) + "\n")
    (tmp_path / "b.json").write_text(json.dumps([LLMBAR, LLMBAR]))
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write(json.dumps(HH) + "\n")
    assert [len(read(tmp_path / name)) for name in ("a.jsonl", "b.json", "c.jsonl.gz")] == [2, 2, 1]
    assert len(read(tmp_path / "a.jsonl", limit=1)) == 1


@pytest.mark.parametrize("text", ["", "not json\n", "{}\n", '{"label": 1}\n'])
def test_a_bad_file_is_one_message_with_the_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=r"bad\.jsonl"):
        read(path)


# -- figures -----------------------------------------------------------------------------------------------------------


def a_row(
    i: int,
    label: str,
    p_ab: float | None,
    p_ba: float | None,
    *,
    texts: tuple[str, str] = ("x", "y"),
    subset: str = "s",
    raters: tuple = (),
) -> Row:
    """A pair with this label, and a judge that gave arm a these probabilities in the two orders."""
    pair = Labelled(f"r{i}", as_prompt(f"Question {i}?"), *texts, label, subset, raters)  # type: ignore[arg-type]
    judgments = [
        Judgment(comparison_id="c", question_id="q", order=order, call_key="k", reply_id="r",
                 verdict="invalid" if p is None else "a" if p > 0.5 else "b" if p < 0.5 else "tie", p_a=p,
                 reason="no_probabilities" if p is None else None)
        for order, p in (("ab", p_ab), ("ba", p_ba))
    ]  # fmt: skip
    settled = settle("c", judgments, {"q": Asked("p", 1.0, ("ab", "ba"))})
    return Row(pair, Said(tuple(judgments), settled))


def test_a_judge_that_is_right_and_sure_agrees_wholly() -> None:
    rows = [a_row(i, "ab"[i % 2], *([0.9, 0.9] if i % 2 == 0 else [0.1, 0.1])) for i in range(40)]
    told = measure(rows)
    assert told["overall"]["decided"]["value"] == told["overall"]["averaged"]["value"] == 1.0
    assert told["overall"]["agreement_decided"]["kappa"]["value"] == pytest.approx(1.0)
    assert told["overall"]["coverage"]["value"] == 1.0 and told["position"]["same_letter"]["value"] == 0
    assert "better than chance" in told["plainly"][0]


def test_a_judge_by_position_is_called_one() -> None:
    rows = [a_row(i, "ab"[i % 2], 0.8, 0.2 + 0.001 * (i % 7 - 3)) for i in range(60)]
    told = measure(rows)
    assert told["overall"]["coverage"]["value"] == 0 and told["overall"]["decided"] is None
    assert told["position"]["same_letter"]["value"] == 1 and told["position"]["same_a"] == 60
    assert told["position"]["p_value"] < 1e-12
    said = " ".join(told["plainly"])
    assert "about chance" in said and "100% of the pairs, mostly A: it judges by position" in said
    assert "0% of the pairs only" in said


def test_a_coin_is_called_chance_and_the_opposite_of_right_is_called_worse() -> None:
    rng = random.Random(4)
    tossed = [rng.choice((0.1, 0.9)) for _ in range(200)]
    coin = [a_row(i, rng.choice("ab"), p, p) for i, p in enumerate(tossed)]
    assert "about chance" in measure(coin)["plainly"][0]
    wrong = [a_row(i, "a", 0.1, 0.1) for i in range(40)]
    assert "worse than chance" in measure(wrong)["plainly"][0]


def test_a_coin_tossed_for_each_order_is_not_said_to_judge_by_position() -> None:
    orders = [(0.9, 0.9), (0.9, 0.1), (0.1, 0.9), (0.1, 0.1)]
    said = measure([a_row(i, "ab"[i // 4 % 2], *orders[i % 4]) for i in range(80)])["plainly"]
    assert "It contradicts itself on 50% of the pairs when the order is swapped." in said
    leaning = [a_row(i, "ab"[i // 4 % 2], *([0.9, 0.1] if i % 2 else [0.9, 0.9])) for i in range(80)]
    assert any("50% of the pairs, mostly A: it judges by position" in line for line in measure(leaning)["plainly"])


def test_few_pairs_are_called_too_few_and_never_certain() -> None:
    few = measure([a_row(i, "a", *([0.9, 0.9] if i < 7 else [0.1, 0.1])) for i in range(10)])
    assert "too few pairs to tell it from chance" in few["plainly"][0]
    assert "too few pairs" in measure([a_row(i, "a", 0.1, 0.1) for i in range(2)])["plainly"][0]
    right = measure([a_row(i, "a", 0.9, 0.9) for i in range(8)])["overall"]["decided"]
    assert (right["value"], right["high"]) == (1.0, 1.0) and right["low"] == pytest.approx(0.676, abs=0.001)  # Wilson


def test_what_could_not_be_read_counts_for_nothing_and_is_told() -> None:
    rows = [a_row(i, "a", None, 0.9) for i in range(10)] + [a_row(i + 10, "a", 0.9, 0.9) for i in range(10)]
    told = measure(rows)
    assert told["unusable"] == {"no_probabilities": 10} and told["overall"]["averaged"]["n"] == 10
    assert any("10 of 40 replies" in line for line in told["plainly"])


def test_ties_of_people_are_in_kappa_and_not_in_accuracy() -> None:
    rows = [a_row(i, "tie", 0.5, 0.5) for i in range(10)] + [a_row(i + 10, "a", 0.9, 0.9) for i in range(10)]
    told = measure(rows)["overall"]
    assert told["averaged"]["n"] == 10
    assert told["agreement_decided"]["n"] == 20 and told["agreement_decided"]["kappa"]["value"] == pytest.approx(1.0)


def test_small_subsets_are_told_together() -> None:
    rows = [a_row(i, "a", 0.9, 0.9, subset=f"tiny {i % 3}" if i < 9 else "large") for i in range(30)]
    assert [(s["subset"], s["n"]) for s in measure(rows)["subsets"]] == [("large", 21), ("other", 9)]


def test_people_among_themselves_are_the_ceiling() -> None:
    rows = [a_row(i, "a", 0.9, 0.9, raters=("a", "a", "b")) for i in range(9)]
    assert measure(rows)["people"]["agreed"]["value"] == pytest.approx(1 / 3)


def test_letters_follow_the_order() -> None:
    assert [letter(0.9, "ab"), letter(0.9, "ba"), letter(0.1, "ab"), letter(0.5, "ab")] == ["A", "B", "B", None]


@pytest.mark.parametrize(("hits", "n", "p"), [(0, 0, 1.0), (5, 10, 1.0), (0, 5, 0.0625), (1, 8, 0.0703125)])
def test_exact_binomial(hits: int, n: int, p: float) -> None:
    assert two_sided(hits, n) == pytest.approx(p)


def test_exact_binomial_equals_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for hits, n in ((3, 17), (40, 90), (250, 500), (0, 60)):
        assert two_sided(hits, n) == pytest.approx(stats.binomtest(hits, n).pvalue)


def test_leaning_to_the_longer_answer() -> None:
    long, short = "many words here " * 4, "few words"
    rows = [a_row(i, "ab"[i % 2], 0.9, 0.9, texts=(long, short)) for i in range(10)]
    found = leaning(rows, lambda text: len(text.split()))
    assert found["judge"]["value"] == 1.0 and found["people"]["value"] == 0.5
    assert leaning([a_row(0, "a", 0.9, 0.9)], len) is None


@pytest.mark.parametrize(
    ("text", "n"), [("plain", 0), ("- a\n- b", 2), ("# T\n**b** x", 2), ("1. a\n2) b", 2), ("3.14", 0)]
)
def test_marks_of_style(text: str, n: int) -> None:
    assert marks(text) == n


def test_effects_find_a_planted_length_bias_and_no_other() -> None:
    rng = random.Random(9)
    rows = []
    for i in range(400):
        words = rng.randrange(1, 60), rng.randrange(1, 60)
        label = rng.choice("ab")
        push = 1.5 * math.tanh((words[0] - words[1]) / 24) + (0.7 if label == "a" else -0.7)
        p = 0.9 if rng.random() < 1 / (1 + math.exp(-push)) else 0.1
        rows.append(a_row(i, label, p, p, texts=("w " * words[0], "w " * words[1])))
    found = {e["name"]: e for e in effects.measure(rows)["effects"]}
    assert found["words"]["low"] < 1.5 < found["words"]["high"] and found["words"]["low"] > 0
    assert found["people's label"]["low"] < 0.7 < found["people's label"]["high"]
    assert "lists, headings, bold" not in found


def test_a_feature_that_decides_the_few_pairs_it_differs_on_hides_no_other() -> None:
    rng = random.Random(3)
    rows = []
    for i in range(120):
        words, label = (rng.randrange(1, 60), rng.randrange(1, 60)), rng.choice("ab")
        p = 0.9 if rng.random() < curves.sigmoid(1.5 * math.tanh((words[0] - words[1]) / 24)) else 0.1
        listed = "\n- x" if i < 3 else ""
        texts = ("w " * words[0] + listed * (p > 0.5), "w " * words[1] + listed * (p < 0.5))
        rows.append(a_row(i, label, p, p, texts=texts))
    told = effects.measure(rows)
    assert told["infinite"] == {"lists, headings, bold": 3} and told["why_not"] is None
    assert {e["name"]: e["low"] > 0 for e in told["effects"]} == {"people's label": False, "words": True}


def test_effects_say_why_they_cannot_be_told() -> None:
    assert "too few" in effects.measure([a_row(0, "a", 0.9, 0.9)])["why_not"]
    assert effects.measure([a_row(i, "a", 0.9, 0.9) for i in range(60)])["why_not"]


# -- calibration -------------------------------------------------------------------------------------------------------


def sharpened(n: int, factor: float) -> list[Row]:
    """A judge whose log-odds are `factor` times what is true."""
    rng = random.Random(2)
    rows = []
    for i in range(n):
        x = rng.gauss(0, 1.5)
        label = "a" if rng.random() < curves.sigmoid(x) else "b"
        p = curves.sigmoid(factor * x)
        rows.append(a_row(i, label, p, p))
    return rows


def test_errors_by_hand() -> None:
    told = reliability.errors([("p", 0.8, 1), ("q", 0.8, 0), ("r", 0.3, 0)])
    assert told["brier"]["value"] == pytest.approx((0.04 + 0.64 + 0.09) / 3)
    assert told["log_loss"]["value"] == pytest.approx(-(math.log(0.8) + math.log(0.2) + math.log(0.7)) / 3)
    assert told["ece"] == pytest.approx((2 * abs(0.8 - 0.5) + 0.3) / 3)


def test_temperature_and_platt_find_what_was_planted() -> None:
    points = [(row.said.p_a, int(row.pair.label == "a")) for row in sharpened(4000, 3.0)]
    assert curves.temperature(points)[1]["temperature"] == pytest.approx(3.0, rel=0.15)
    fitted = curves.platt(points)[1]
    assert fitted["slope"] == pytest.approx(1 / 3, rel=0.15) and abs(fitted["offset"]) < 0.15


def test_recalibration_is_fitted_on_one_half_and_mends_the_other() -> None:
    told = reliability.measure(sharpened(600, 4.0))
    assert told["n_fitted"] + told["n_shown"] == 600 and min(told["n_fitted"], told["n_shown"]) > 250
    plain, *mended = told["recalibrated"]
    assert [c["name"] for c in mended] == ["temperature", "platt", "isotonic"]
    for curve in mended:
        assert curve["errors"]["n"] == told["n_shown"]
        assert curve["errors"]["brier"]["value"] < plain["errors"]["brier"]["value"]
        assert curve["errors"]["ece"] < plain["errors"]["ece"]


def test_isotonic_never_falls() -> None:
    curve, _ = curves.isotonic([(row.said.p_a, int(row.pair.label == "a")) for row in sharpened(300, 2.0)])
    values = [curve(p / 50) for p in range(51)]
    assert values == sorted(values) and 0 <= values[0] <= values[-1] <= 1


def test_too_few_rows_are_not_recalibrated_and_say_so() -> None:
    told = reliability.measure(sharpened(12, 1.0))
    assert told["recalibrated"] == [] and "too few" in told["why_not"]
    assert reliability.measure([a_row(0, "tie", 0.5, 0.5)]) is None


def test_the_plot_is_sound_svg_and_says_in_words_what_it_shows() -> None:
    told = reliability.measure(sharpened(200, 2.0))
    tree = ElementTree.fromstring(plot.svg(told, "A <judge> & its plot"))
    space = "{http://www.w3.org/2000/svg}"
    assert tree.get("role") == "img" and tree.find(f"{space}title").text == "A <judge> & its plot"
    words = tree.find(f"{space}desc").text
    for bin_ in told["bins"]:
        assert f"said {bin_['said']:.2f}, came true {bin_['came_true']:.2f}" in words
    assert len(tree.findall(f"{space}polyline")) == 4


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_measures_keeps_and_asks_nothing_twice(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path, n_prompts=2)
    config = runs.write_config(tmp_path, runs.config(tmp_path, engine__args=["--judge", "shorter"]))
    rows = [LABELLED | {"id": f"x{i}", "prompt": f"Why {i}?", "response_a": "one " * (i % 9 + 1)} for i in range(60)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    told = json.loads(runs.cai("judge", "bench", config, "--data", data, "--json").stdout)
    assert told["n"] == 60 and told["calls"]["made"] == 120 and told["overall"]["coverage"]["value"] == 1.0
    assert Path(told["files"]["plot"]).read_text().startswith("<svg")
    again = json.loads(runs.cai("judge", "bench", config, "--data", data, "--json").stdout)
    assert again["calls"] == {"made": 0, "reused": 120} and again["overall"] == told["overall"]
    shown = runs.cai("judge", "bench", config, "--data", data, "--limit", "9", "--by", "constitution", "--quiet").stdout
    assert "9 pairs" in shown and "same letter in both orders" in shown


@pytest.mark.parametrize(
    "arguments", [["--data", "nowhere.jsonl"], ["--data", "pairs.jsonl", "--limit", "0"], ["--data", "."]]
)
def test_bad_input_is_one_message(tmp_path: Path, arguments: list[str]) -> None:
    runs.write_inputs(tmp_path, n_prompts=2)
    config = runs.write_config(tmp_path, runs.config(tmp_path))
    done = runs.cai("judge", "bench", config, *arguments, check=2, cwd=None)
    assert done.stderr.startswith("cai: ") and len(done.stderr.strip().splitlines()) == 1
