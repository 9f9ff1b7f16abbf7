"""What is asked again is asked as before, seed, sampling and all; and what comes of it is told."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from cai.audit.views import Views
from cai.config import EngineSection
from cai.engine.client import Client
from cai.engine.model import Generate, Reply, Sampling
from cai.engine.scripted import ScriptedProcess, ScriptedServer, asking
from cai.engine.tokens import ByteTokens
from cai.engine.transport import Endpoint
from cai.templates import Turn
from tests import runs

N = 50
SAMPLING = Sampling(max_tokens=70, temperature=0.9, min_p=0.05, top_p=0.95)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the server was sent to complete."""
    found: list[dict[str, Any]] = []
    real = asking.completion_ask

    def noting(fields: dict[str, Any], model: str, max_model_len: int) -> Any:
        found.append(dict(fields))
        return real(fields, model, max_model_len)

    monkeypatch.setattr(asking, "completion_ask", noting)
    return found


def test_one_request_fifty_times_under_load_gets_one_answer(sent: list[dict[str, Any]]) -> None:
    """Between other seeds, and through push back and broken connections."""
    turns = (Turn("user", "Tell me about the sea, please."),)
    requests = [Generate(turns, SAMPLING, seed) for i in range(N) for seed in (7, 100 + i)]

    async def main() -> list[Reply]:
        async with ScriptedServer(faults="429:0.1,retry-after=0;reset:0.05") as server:
            endpoint = Endpoint(server.url, EngineSection(retries=20))
            await endpoint.open()
            try:
                client = Client([endpoint], EngineSection(), identity="m", name="scripted", tokenizer=ByteTokens())
                return await asyncio.gather(*(client.generate(request) for request in requests))
            finally:
                await endpoint.close()

    replies = asyncio.run(main())
    assert len({reply.text for reply in replies[::2]}) == 1, "one seed, one answer"
    assert len({reply.text for reply in replies[1::2]}) > N / 2, "the seed decides"
    assert {fields["seed"] for fields in sent} == {request.seed for request in requests}
    asked = {name: {fields.get(name) for fields in sent} for name in SAMPLING.as_dict()}
    assert asked == {name: {value} for name, value in SAMPLING.as_dict().items()}


def test_decisions_asked_again_are_the_same_requests_and_their_agreement_is_told(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path, n_prompts=8)
    with ScriptedProcess(judge="coherent", count_keys=True) as server:
        path = runs.write_config(tmp_path, runs.config(tmp_path, url=server.url))
        run = Path(runs.run_json(path)["run"])
        before = server.stats()["asks"]
        again = _again(run)
        after = server.stats()["asks"]
        port = int(server.url.rsplit(":", 1)[1])
    assert again["n"] == again["agreed"] == N
    assert after["distinct"] == before["distinct"] and after["repeated"] == before["repeated"] + N
    with ScriptedProcess(judge="always-b", port=port):
        said = runs.cai("audit", "replay", run, "--live", str(N)).stdout
        other = _again(run)
    assert all(d["decision_id"] in said for d in other["differences"])
    assert other["n"] == N and 0 < other["agreed"] < N and len(other["differences"]) == N - other["agreed"]


PRIOR = {"prior": "content_free"}
REASONS = {"mode": "cot", "cot": {"samples": 2, "clamp": [0, 1]}}
MODES: dict[str, dict[str, Any]] = {
    "logprob": PRIOR,
    "cot": REASONS | PRIOR,
    "score": {"mode": "score"},
    "rubric": {"mode": "rubric"} | PRIOR,
}


@pytest.mark.parametrize("mode", MODES)
def test_in_every_mode_a_judge_that_repeats_itself_is_told_to(tmp_path: Path, mode: str) -> None:
    """What was taken off of its log-odds is taken off again; what code decided is decided again and not asked."""
    runs.write_inputs(tmp_path, n_prompts=3)
    principles = tmp_path / "constitution.yaml"
    with principles.open("a", encoding="utf-8") as file:
        file.write("    rubric: [{ask: Is it clear?}, {ask: Is it vague?, weight: -1}]\n")
    rule = "always-a" if mode in ("logprob", "cot") else "coherent"
    path = runs.write_config(tmp_path, runs.config(tmp_path, judge=MODES[mode], engine__args=["--judge", rule]))
    run = Path(runs.run_json(path)["run"])
    with Views(run) as views:
        asked, by_code = views.query("SELECT sum(mode <> 'check'), sum(mode = 'check') FROM decisions").rows[0]
    told = json.loads(runs.cai("audit", "replay", run, "--live", "500", "--json").stdout)
    assert told["by_code"] == by_code > 0
    assert told["live"]["n_able"] == told["live"]["agreed"] == asked > 5 and told["live"]["largest"] < 1e-9


def _again(run: Path) -> dict[str, Any]:
    return dict(json.loads(runs.cai("audit", "replay", run, "--live", str(N), "--json").stdout)["live"])
