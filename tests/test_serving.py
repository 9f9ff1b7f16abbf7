"""Models of a run: who serves them, and adapters beside their base."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import psutil
import pytest

from cai.config import EngineSection, ModelSection, ModelsSection, Phase, RunConfig, TrainSection
from cai.engine.model import Generate, Sampling, Turn
from cai.errors import EngineError
from cai.pipeline.meter import Meter
from cai.pipeline.serving import Fleet

POLICY = ModelSection(checkpoint="base")


def fleet(folder: Path, adapters: str = "load") -> Fleet:
    engine = EngineSection(kind="scripted", adapters=adapters)  # type: ignore[arg-type]
    config = RunConfig.model_construct(
        models=ModelsSection(policy=POLICY),
        engine=engine,
        phases=(Phase(name="sl", train="sft"),),
        train=TrainSection(),
    )
    return Fleet(config, folder, Meter())


def trained(folder: Path) -> Path:
    """Return the whole model of a checkpoint that has an adapter, too."""
    for kind in ("adapter", "model"):
        (folder / kind).mkdir(parents=True)
        (folder / kind / "config.json").write_text("{}")
    return folder / "model"


def names_served(folder: Path) -> list[str]:
    return sorted(json.loads((folder / "servers.json").read_text()))


def request(seed: int) -> Generate:
    return Generate((Turn("user", "hello"),), Sampling(max_tokens=8), seed)


def test_an_adapter_is_served_beside_its_base(tmp_path: Path) -> None:
    async def main() -> None:
        models = fleet(tmp_path)
        base = models.model(POLICY, "policy")
        policy = models.checkpoint(trained(tmp_path / "sl"), "sl", base=base)
        try:
            assert policy.identity != base.identity
            assert (await policy.generate(request(1))).text
            assert names_served(tmp_path) == ["policy"]
            address = await models.address(policy)
            assert address.served_name == "sl" and address.base_url == (await models.address(base)).base_url
            await models.release(policy)
            assert (await base.generate(request(1))).text
        finally:
            await models.release_all()

    asyncio.run(main())


def test_a_restarted_server_takes_its_adapters_again(tmp_path: Path) -> None:
    async def main() -> None:
        models = fleet(tmp_path)
        base = models.model(POLICY, "policy")
        policy = models.checkpoint(trained(tmp_path / "sl"), "sl", base=base)
        try:
            before = (await policy.generate(request(1))).text
            pid = json.loads((tmp_path / "servers.json").read_text())["policy"]["pid"]
            for child in psutil.Process(pid).children(recursive=True):
                child.kill()
            assert (await policy.generate(request(1))).text == before
        finally:
            await models.release_all()

    asyncio.run(main())


@pytest.mark.parametrize("served_anyway", [True, False])
def test_merged_checkpoints_have_a_server_of_their_own(tmp_path: Path, served_anyway: bool) -> None:
    async def main() -> None:
        models = fleet(tmp_path, "merge" if served_anyway else "load")
        base = models.model(POLICY, "policy")
        policy = models.checkpoint(trained(tmp_path / "sl"), "sl", base=base if served_anyway else None)
        try:
            assert (await policy.generate(request(1))).text
            assert names_served(tmp_path) == ["sl"]
        finally:
            await models.release_all()

    asyncio.run(main())


def test_an_adapter_that_is_refused_says_what_to_do(tmp_path: Path) -> None:
    async def main() -> None:
        models = fleet(tmp_path)
        # The scripted server, like vLLM, takes no adapter by the name of its model.
        policy = models.checkpoint(trained(tmp_path / "sl"), "scripted", base=models.model(POLICY, "policy"))
        try:
            with pytest.raises(EngineError, match="engine.adapters=merge"):
                await policy.generate(request(1))
        finally:
            await models.release_all()

    asyncio.run(main())


def test_a_model_is_served_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    async def start(*_: object, revision: str | None = None, **__: object) -> None:
        asked.append(revision)
        raise EngineError("asked enough")

    monkeypatch.setattr("cai.engine.server.start", start)

    async def main() -> None:
        section = ModelSection(checkpoint="base", revision="v2")
        with pytest.raises(EngineError, match="enough"):
            await fleet(tmp_path).model(section, "policy").generate(request(0))

    asyncio.run(main())
    assert asked == ["v2"]
