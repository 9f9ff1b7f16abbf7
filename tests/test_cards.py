"""Cards say what the run's files say and nothing of this machine; a push lists everything first and sends if asked."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cai import cards
from cai.cards import facts, push
from cai.cards.text import inline
from cai.errors import UserError
from cai.manifest import now
from cai.records import Override, Withdrawal
from cai.review import Desk, agreement
from cai.store import ledger, schema
from cai.trail import RunView
from tests import runs
from tests.report_fixture import make_run
from tests.test_report import HOSTILE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_run(tmp_path_factory.mktemp("cards") / "brief")
    weigh(made)
    return made


def weigh(run: Path, phase: str = "rl") -> Path:
    """Put a checkpoint's files where training leaves them, some of which must stay here."""
    model = run / "checkpoints" / phase / "model"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights" * 10)
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "_name_or_path": str(Path.home() / "base")}))
    (model / "tokenizer.json").write_text("{}")
    (model / "cai-model.json").write_text(json.dumps({"source": str(Path.home() / "cache")}))
    (model / "training_args.bin").write_bytes(b"pickle")
    return model


def view(folder: Path) -> RunView:
    return RunView(folder)


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


# -- what a card says --------------------------------------------------------------------------------------------------


def test_a_model_card_tells_constitution_judge_pairs_filters_limits_and_licences(folder: Path) -> None:
    card = cards.card(view(folder), "model", license_="apache-2.0")
    for heading in ("What changed", "Constitution", "Judge", "Data", "Training", "Limits", "Licences"):
        assert f"\n## {heading}\n" in card
    told = facts.gather(view(folder), "model")
    assert told["rows"]["id"] in card and told["constitution"]["id"] in card and told["ledger"]["head"] in card
    for principle in told["constitution"]["principles"]:
        assert principle["id"] in card
    assert "agrees with itself when the order is swapped" in card and "Filters: ties left out" in card
    assert "tiny-135m: not known to the run" in card


def test_front_matter_is_yaml_that_the_hub_reads(folder: Path) -> None:
    model = front(cards.card(view(folder), "model", license_="apache-2.0"))
    assert model["license"] == "apache-2.0" and model["library_name"] == "transformers"
    assert "constitutional-ai" in model["tags"] and "base_model" not in model
    dataset = front(cards.card(view(folder), "dataset"))
    assert "license" not in dataset and dataset["configs"][0]["data_files"] == "pairs.jsonl"
    assert dataset["size_categories"] == ["n<1K"]


def test_figures_are_those_of_the_report(folder: Path) -> None:
    told = facts.gather(view(folder), "model")
    all_checks = told["evaluation"]["checks"][0]
    card = cards.card(view(folder), "model")
    assert f"| {100 * all_checks['before']:.1f}% | {100 * all_checks['after']:.1f}% |" in card
    assert "at equal length" in card


def test_a_judge_that_contradicts_itself_is_among_the_limits(tmp_path: Path) -> None:
    run = view(make_run(tmp_path / "weak", judge="always-a"))
    limits = cards.card(run, "dataset").split("## Limits")[1].split("## Licences")[0]
    assert "picked answer A, whichever it was" in limits and "blind labels" in limits


def test_a_collapse_is_among_the_limits(tmp_path: Path) -> None:
    run = view(make_run(tmp_path / "fallen", after="collapsed"))
    assert "Collapse check: length below half" in cards.card(run, "model")


def test_what_people_picked_to_decide_measures_no_agreement(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "reviewed")
    *ends, undone = [e for e in view(folder).ended("rl") if e.settled.label in ("a", "b")][:7]
    made: list[Override] = []
    for i, end in enumerate(ends):
        other = {"a": "b", "b": "a"}[end.settled.label]
        label = end.settled.label if i < 3 else other
        made.append(
            Override(
                comparison_id=end.comparison.id,
                label=label,
                author="ann",
                reason="r",
                blind=i != 5,
                settles=("b2:ann", "b2:bob"),
                time=now(),
            )
        )
    undone_id = undone.comparison.id
    mistaken = Override(comparison_id=undone_id, label="tie", author="ann", reason="r", blind=True, time=now())
    back = Withdrawal(comparison_id=undone_id, withdraws=mistaken.id, author="ann", time=now())
    with closing(schema.connect(folder / "store.sqlite")) as connection:
        ledger.append_now(connection, [*made, mistaken, back])
    told = facts.gather(view(folder), "dataset")
    assert told["people"] == {"decided": 6, "blind": 5, "accuracy": None}
    n = told["rows"]["human"]
    assert told["rows"]["adjudicated"] == n > 0
    for kind in cards.KINDS:
        card = cards.card(view(folder), kind)
        assert "6 comparisons, 5 of them without" in card and "They picked these themselves" in card
        assert "how far the judge agrees with people is not known" in card
    assert f"{n} labels are a person’s, {n} of them decided between" in cards.card(view(folder), "dataset")
    assert f"{n} labelled by people ({n} decided between reviewers who differed)" in cards.card(view(folder), "model")


def test_agreement_with_people_is_that_of_comparisons_drawn_at_random(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "drawn", n_train=20, n_held_out=2)
    desk = Desk(folder)
    desk.draw(estimate=10, value=4, author="ann")
    while shown := desk.next("ann"):
        desk.vote("ann", shown.item_id, "left")
    measured = agreement.headline(desk.run)
    assert measured is not None and 0 < measured.value < 1
    told = facts.people(view(folder))
    assert (told["accuracy"]["value"], told["accuracy"]["n"]) == (measured.value, measured.n)
    card = cards.card(view(folder), "dataset")
    assert f"Of {measured.n} comparisons drawn at random" in card and f"{100 * measured.value:.0f}% (" in card
    assert f"compared with people on {measured.n} comparisons only" in card


def test_a_card_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    config = {
        "models": {"policy": {"checkpoint": str(tmp_path / "models" / "base")}},
        "prompts": {"sources": [{"path": str(tmp_path / "prompts.jsonl")}]},
    }
    run = view(make_run(tmp_path / "away", config=config))
    for kind in cards.KINDS:
        card = cards.card(run, kind)
        assert str(tmp_path) not in card and str(Path.home()) not in card
        assert "- prompts.jsonl" in card
    panel = f"mean of logprob:{tmp_path}/models/base@1 + reward_model:~/rm + cot:org/name@2"
    assert facts.public_name(panel) == "mean of logprob:base@1 + reward_model:rm + cot:org/name@2"


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_the_run_is_obeyed_by_markdown(text: str) -> None:
    told = inline(f"x {text} | # y")
    assert "\n" not in told and not re.search(r"(?<!\\)[<>|`\[\]#]", told)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b]", told)


def test_a_card_without_a_checkpoint_or_pairs_is_refused(tmp_path: Path) -> None:
    walk = [{"name": "walk", "samples": 2, "revisions": 1, "pairs": ["revision", "samples"], "train": "none"}]
    plain = view(make_run(tmp_path / "plain", config={"phases": walk}, phases=("walk",), arms=()))
    with pytest.raises(UserError, match="this run has trained none"):
        cards.card(plain, "model")
    with pytest.raises(UserError, match="no preference pairs"):
        cards.card(view(make_run(tmp_path / "bare", phases=(), arms=(), done=False)), "dataset")


def test_a_reward_model_is_not_taken_for_the_policy(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "scored")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["phases"]["rm"] = {"train": {**manifest["phases"]["rl"]["train"], "method": "reward"}}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert facts.gather(view(folder), "model")["checkpoint"]["phase"] == "rl"


def test_the_licence_of_a_base_is_read_from_its_own_card(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\ntags: [x]\nlicense: 'mit'\n---\n# base\n", encoding="utf-8")
    run = view(make_run(tmp_path / "run", config={"models": {"policy": {"checkpoint": str(base)}}}))
    assert facts.gather(run, "model")["base"]["license"] == "mit"


# -- what would leave --------------------------------------------------------------------------------------------------


class Hub:
    """Stands in for the Hub and remembers what it was told."""

    def __init__(self, *, there: bool | None = None) -> None:
        self.there = there
        """Whether the repository is there and private (True) or public (False); None where it is not there."""
        self.created: list[dict[str, Any]] = []
        self.commits: list[dict[str, Any]] = []

    def repo_exists(self, **where: Any) -> bool:
        return self.there is not None

    def repo_info(self, **where: Any) -> Any:
        return SimpleNamespace(private=self.there)

    def create_repo(self, **what: Any) -> None:
        self.created.append(what)

    def create_commit(self, **what: Any) -> Any:
        self.commits.append(what)
        return SimpleNamespace(repo_url=f"hub/{what['repo_id']}")


def names(shipment: push.Shipment) -> list[str]:
    return [item.name for item in shipment.items]


def test_only_named_files_would_leave(folder: Path) -> None:
    model = push.prepare(view(folder), "model", "me/brief")
    assert names(model) == ["README.md", "constitution.yaml", "config.json", "model.safetensors", "tokenizer.json"]
    dataset = push.prepare(view(folder), "dataset", "me/brief-pairs")
    assert names(dataset) == ["README.md", "constitution.yaml", "pairs.jsonl", "provenance.jsonl"]
    assert model.private and dataset.private and all(item.what for item in (*model.items, *dataset.items))


def test_folders_of_this_machine_are_taken_out_of_a_models_files(folder: Path) -> None:
    shipment = push.prepare(view(folder), "model", "me/brief")
    config = next(item for item in shipment.items if item.name == "config.json")
    assert json.loads(config.content) == {"model_type": "llama", "_name_or_path": "tiny-135m"}
    assert shipment.warnings == ()


def test_pairs_that_would_leave_are_those_that_pairs_writes(folder: Path, tmp_path: Path) -> None:
    shipment = push.prepare(view(folder), "dataset", "me/brief-pairs")
    out = tmp_path / "pairs.jsonl"
    runs.cai("pairs", folder, "-o", out)
    by_name = {item.name: item.content for item in shipment.items}
    assert by_name["pairs.jsonl"] == out.read_bytes()
    assert by_name["provenance.jsonl"] == (tmp_path / "provenance.jsonl").read_bytes()


def test_keys_in_what_would_leave_are_pointed_at(tmp_path: Path) -> None:
    token = "hf_" + "a1B2" * 9
    run = view(make_run(tmp_path / "leaky", rewrite=lambda text: f"{text} Use {token}."))
    shipment = push.prepare(run, "dataset", "me/x")
    assert shipment.warnings and all(re.match(r"pairs\.jsonl:\d+: looks like a key", w) for w in shipment.warnings)


def test_a_push_creates_a_private_repository_and_one_commit(folder: Path) -> None:
    hub = Hub()
    assert push.send(push.prepare(view(folder), "model", "me/brief"), hub) == "hub/me/brief"
    assert hub.created == [{"repo_id": "me/brief", "repo_type": "model", "private": True}]
    (commit,) = hub.commits
    assert [o.path_in_repo for o in commit["operations"]] == names(push.prepare(view(folder), "model", "me/brief"))


def test_a_private_shipment_is_not_written_to_a_public_repository(folder: Path) -> None:
    hub = Hub(there=False)
    with pytest.raises(UserError, match="already and public"):
        push.send(push.prepare(view(folder), "model", "me/brief"), hub)
    assert hub.commits == []


def test_publishing_needs_a_licence(folder: Path) -> None:
    with pytest.raises(UserError, match="--public needs --license"):
        push.prepare(view(folder), "model", "me/brief", public=True)
    shipment = push.prepare(view(folder), "model", "me/brief", public=True, license_="apache-2.0")
    hub = Hub()
    push.send(shipment, hub)
    assert hub.created[0]["private"] is False


def test_what_the_hub_refuses_is_told_in_one_line(folder: Path) -> None:
    class Refusing(Hub):
        def create_repo(self, **what: Any) -> None:
            raise OSError("no network here\nand a long story")

    with pytest.raises(push.PushError, match=r"did not take 'me/brief' \(no network here\)"):
        push.send(push.prepare(view(folder), "model", "me/brief"), Refusing())


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_writes_both_cards(folder: Path, tmp_path: Path) -> None:
    said = json.loads(runs.cai("card", folder, "-o", tmp_path / "cards", "--json").stdout)
    assert set(said) == {"model", "dataset"}
    assert Path(said["model"]).read_text(encoding="utf-8") == cards.card(view(folder), "model")


def test_without_yes_nothing_is_sent(folder: Path) -> None:
    said = runs.cai("card", folder, "--kind", "dataset", "--push", "me/brief-pairs").stdout
    assert "(private)" in said and "pairs.jsonl" in said and "nothing was sent" in said
    told = json.loads(runs.cai("card", folder, "--kind", "dataset", "--push", "me/brief-pairs", "--json").stdout)
    assert told["sent"] is None and told["private"] and told["bytes"] == sum(f["bytes"] for f in told["files"])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--push", "me/x"), "needs --kind"),
        (("--yes",), "go with --push"),
        (("--kind", "model", "--push", "noslash"), "expected OWNER/NAME"),
        (("--kind", "model", "--phase", "nowhere"), "phases with a checkpoint: sl, rl"),
    ],
)
def test_mistakes_are_told_in_one_message(folder: Path, words: tuple[str, ...], complaint: str) -> None:
    said = runs.cai("card", folder, *words, check=2)
    assert complaint in said.stderr and "Traceback" not in said.stderr
