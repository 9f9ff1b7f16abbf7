"""One prompt's whole walk on a real vLLM server with the real 135M model, and the roads of scoring against it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cai.config import EngineSection, ModelSection
from cai.engine import server as servers
from cai.engine.client import Client
from cai.engine.model import Generate, Likelihood, Sampling, ScoreGroup
from cai.engine.reach import load_tokens
from cai.engine.transport import Endpoint
from cai.model.fetch import fetch
from cai.templates import Turn
from cai.trail import RunView
from tests import runs

MODEL = "smollm2-135m-instruct"
SETTINGS = {"max_model_len": 2048, "memory_gib": 1.0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    checkpoint = fetch(MODEL)
    folder = tmp_path_factory.mktemp("vllm")
    started = asyncio.run(
        servers.start(str(checkpoint), EngineSection(**SETTINGS), run_dir=folder, name="test", identity=MODEL)
    )
    yield started
    asyncio.run(started.stop())


def ask(server: servers.Server, work: object, **changes: object) -> object:
    """Return what `work(client)` gives back."""

    async def main() -> object:
        engine = EngineSection(**(SETTINGS | changes))
        endpoint = Endpoint(server.url, engine)
        await endpoint.open()
        try:
            tokens = load_tokens(ModelSection(checkpoint=MODEL), engine)
            client = Client([endpoint], engine, identity=MODEL, name=server.model_name, tokenizer=tokens)
            return await work(client)  # type: ignore[operator]
        finally:
            await endpoint.close()

    return asyncio.run(main())


HEAD = (
    Turn("user", "Compare two answers.\n\nAnswer A: Paris is the capital of France.\n\nAnswer B: I like cheese."),
    Turn("assistant", "I have read both answers."),
)
TAILS = tuple(
    (
        Turn("user", f"Principle: {p}\n\nWhich answer is better, A or B?"),
        Turn("assistant", "The better answer is answer"),
    )
    for p in (
        "It should be true.",
        "It should be about food and nothing else, whatever was asked.",
        "It should be long.",
    )
)


def test_every_road_of_scoring_agrees(server: servers.Server) -> None:
    group = ScoreGroup(HEAD, TAILS, ("A", "B"))
    by_ids = ask(server, lambda c: c.score(group))
    by_chat = ask(server, lambda c: c.score(group), fast_paths=False)
    by_share = ask(server, _by_shares(group))
    assert {r.road for r in by_share} == {"/generative_scoring"}
    for one, *others in zip(by_ids, by_chat, by_share, strict=True):
        assert one.outside is not None and 0 <= one.outside < 1
        for other in others:
            assert one.error is None and other.error is None
            p, q = (_p_first(r.logprobs) for r in (one, other))
            assert abs(p - q) <= 0.02
            assert (p > 0.5) == (q > 0.5) or abs(p - 0.5) <= 0.02


def _by_shares(group: ScoreGroup) -> object:
    """Return what asks a client by `/generative_scoring` alone."""

    def work(client: Client) -> object:
        client.roads.drop("/v1/completions")
        return client.score(ScoreGroup(group.head, group.tails, group.options, mass=False))

    return work


def _p_first(logprobs: dict[str, float]) -> float:
    import math

    return 1 / (1 + math.exp(logprobs["B"] - logprobs["A"]))


def test_a_batch_is_only_transport(server: servers.Server) -> None:
    whole = ask(server, lambda c: c.score(ScoreGroup(HEAD, TAILS, ("A", "B"))))
    alone = [ask(server, lambda c, t=t: c.score(ScoreGroup(HEAD, (t,), ("A", "B"))))[0] for t in TAILS]
    for one, other in zip(whole, alone, strict=True):
        assert abs(_p_first(one.logprobs) - _p_first(other.logprobs)) <= 0.02


def test_the_same_seed_writes_the_same_text(server: servers.Server) -> None:
    turns = (Turn("user", "Name a fruit and say why you like it."),)
    request = Generate(turns, Sampling(max_tokens=24, temperature=1.0, min_p=0.05), seed=11)
    first, second = (ask(server, lambda c: c.generate(request)) for _ in range(2))
    assert first.text == second.text and first.n_completion > 0
    other = ask(server, lambda c: c.generate(Generate(turns, request.sampling, seed=12)))
    assert other.text != first.text


def test_a_written_answer_has_a_likelihood(server: servers.Server) -> None:
    turns = (Turn("user", "What is the capital of France?"),)
    likely = ask(server, lambda c: c.likelihood(Likelihood(turns, "The capital of France is Paris.")))
    unlikely = ask(server, lambda c: c.likelihood(Likelihood(turns, "Purple sevens walk under Paris of.")))
    assert likely.error is None
    assert likely.logp / likely.n_completion > unlikely.logp / unlikely.n_completion


def test_the_whole_walk_of_one_prompt(tmp_path: Path, server: servers.Server) -> None:
    runs.write_inputs(tmp_path, n_prompts=1)
    tree = runs.config(tmp_path, url=server.url, judge={"mode": "logprob"})
    tree["engine"] = {"kind": "vllm"} | SETTINGS
    tree["models"]["policy"]["tokenizer"] = MODEL
    for stage in ("respond", "critique", "revise"):
        tree[stage] = {"max_tokens": 48}
    said = runs.run_json(runs.write_config(tmp_path, tree))
    run = RunView(said["run"])
    ends = list(run.ended("walk"))
    assert ends and said["accounting"]["failed"] == 0 and said["accounting"]["invalid"] == 0
    for end in ends:
        assert all(arm.text for arm in end.arms)
        judged = [d for d in end.decisions if d.call_key]
        assert {d.order for d in judged} == {"ab", "ba"} and len(judged) == 4
        for decision in judged:
            request, reply = run.call(decision.call_key)
            assert "Principle:" in request["messages"][-2]["content"]
            assert set(reply.logprobs) == {"A", "B"} and reply.outside < 0.5
    assert json.loads(runs.cai("status", said["run"], "--json").stdout)["state"] == "done"


def test_a_server_we_start_counts_its_tokens(server: servers.Server) -> None:
    """What tells one that hangs from one that is slow."""
    turns = (Turn("user", "Name a fruit."),)

    async def count(client: Client) -> tuple[float | None, float | None, bytes]:
        endpoint = client._replicas.all[0].endpoint
        before = await endpoint._tokens_made()
        await client.generate(Generate(turns, Sampling(max_tokens=4), seed=1))
        return before, await endpoint._tokens_made(), (await endpoint._get("/metrics", 60))[1]

    before, after, told = ask(server, count)
    assert before is not None and after is not None and after >= before + 4 and after > 4
    assert {b"vllm:generation_tokens_total", b"vllm:prompt_tokens_total"} <= {
        line.partition(b"{")[0] for line in told.splitlines()
    }
