"""The models of a run: which server answers for which checkpoint, started when first asked and stopped at the end.

A model is known by its identity before anything is served, so a run whose answers are all kept starts no server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cai.config import EngineSection, LoraSection, ModelSection, RunConfig
from cai.engine import reach
from cai.engine import server as servers
from cai.engine.client import Client
from cai.engine.command import Adapters, loads_adapters
from cai.engine.identity import cached_commit, model_identity
from cai.engine.model import Generate, Heard, Likelihood, Model, Reply, ScoreGroup
from cai.engine.transport import Endpoint
from cai.errors import CaiError, UserError
from cai.model.fetch import resolve
from cai.model.linear import linear_layers
from cai.pipeline.meter import Meter


class Adapter(NamedTuple):
    """A LoRA adapter to be served beside its base, in the same server."""

    folder: Path
    base: Lazy


class Lazy:
    """A model that comes into being when it is first asked."""

    def __init__(
        self, identity: str, fleet: Fleet, section: ModelSection, name: str, adapter: Adapter | None = None
    ) -> None:
        self.identity = identity
        self._fleet, self.section, self.name, self.adapter = fleet, section, name, adapter

    async def _ready(self) -> Model:
        return await self._fleet.ready(self)

    async def generate(self, request: Generate) -> Reply:
        """As Model."""
        return await (await self._ready()).generate(request)

    async def score(self, group: ScoreGroup, heard: Heard | None = None) -> list[Reply]:
        """As Model."""
        return await (await self._ready()).score(group, heard)

    async def likelihood(self, request: Likelihood) -> Reply:
        """As Model."""
        return await (await self._ready()).likelihood(request)


class Fleet:
    """Every server this run has started or been told of."""

    def __init__(self, config: RunConfig, folder: Path, meter: Meter) -> None:
        self._config = config
        self._engine = config.engine
        self._folder = folder
        self._meter = meter
        self._models: dict[str, Model] = {}
        self.roads: dict[str, Any] = {}
        """By which road each model was scored, and what each road took: kept when a model is released."""
        self._servers: dict[str, servers.Server] = {}
        self._endpoints: dict[str, list[Endpoint]] = {}
        self._failure: CaiError | None = None
        self._starting = asyncio.Lock()
        self.sleeps = False
        """Whether servers started from now on can be put to sleep."""

    def model(self, section: ModelSection, name: str) -> Lazy:
        """Return the model a config section names."""
        return Lazy(identity_of(section, self._engine), self, section, name)

    def checkpoint(self, path: Path, name: str, base: Lazy | None = None) -> Lazy:
        """Return the model of a checkpoint this run has trained.

        `base` is what it was trained on, where that is served anyway: an adapter may then go into the same server.
        """
        trusted = self._config.models.policy.trust_remote_code  # its code is saved beside what it has become
        section, folder = ModelSection(checkpoint=str(path), trust_remote_code=trusted), path.parent / "adapter"
        if base is None or base.section.base_url or not folder.is_dir() or not self._loads_adapters:
            return self.model(section, name)
        # Where weights are merged they are rounded anew, so the two roads are two models.
        identity = f"{base.identity} with {model_identity(str(folder))}"
        return Lazy(identity, self, section, name, Adapter(folder, base))

    async def ready(self, model: Lazy) -> Model:
        """Return a model that answers, serving it first if nobody does yet."""
        async with self._starting:
            if self._failure is not None:
                raise self._failure  # whoever asks next must not wait for the same failure again
            try:
                return await self._served(model)
            except CaiError as error:
                self._failure = error
                raise

    async def _served(self, model: Lazy) -> Model:
        if model.identity not in self._models:
            self._models[model.identity] = await self._serve(model)
        return self._models[model.identity]

    async def address(self, model: Lazy) -> ModelSection:
        """Return how another process reaches a model: servers that run, started now if need be, or its checkpoint."""
        section = model.section
        if section.base_url or self._engine.kind == "transformers":
            return section
        await self.ready(model)
        served = self._servers[model.adapter.base.identity if model.adapter else model.identity]
        name = model.name if model.adapter else served.model_name
        return section.model_copy(update={"base_url": (served.url,), "served_name": name})

    async def release(self, model: Lazy) -> None:
        """Stop serving a model, if this run serves it; servers of others stay up."""
        async with self._starting:
            identity = model.identity
            was_served = self._models.pop(identity, None)
            self._note_road(was_served)
            if was_served and model.adapter:
                await self._servers[model.adapter.base.identity].unload_adapter(model.name)
            for endpoint in self._endpoints.pop(identity, []):
                await endpoint.close()
            if server := self._servers.pop(identity, None):
                await server.stop()

    async def release_all(self) -> None:
        """Stop everything this run serves."""
        async with self._starting:
            for model in self._models.values():
                self._note_road(model)
            endpoints = [endpoint for several in self._endpoints.values() for endpoint in several]
            await asyncio.gather(*(e.close() for e in endpoints), *(s.stop() for s in self._servers.values()))
            for kept in (self._models, self._endpoints, self._servers):
                kept.clear()

    def _note_road(self, model: Model | None) -> None:
        if isinstance(model, Client) and (roads := model.roads.as_dict()):
            self.roads[model.identity] = roads

    async def _serve(self, model: Lazy) -> Model:
        identity, section, name = model.identity, model.section, model.name
        if model.adapter:
            return await self._load(model, model.adapter)
        if section.base_url:
            tokenizer = reach.tokenizer_of(section, self._engine)
            client, ways = await reach.connect(section, self._engine, identity=identity, tokenizer=tokenizer)
            self._endpoints[identity] = ways
            return client
        if self._engine.kind == "transformers":
            with self._meter.stage(f"load {name}", 1):
                return reach.load_here(section, self._engine, identity=identity)
        with self._meter.stage(f"start server for {name}", 1):
            further = {"adapters": await asyncio.to_thread(self._adapters, section), "sleeps": self.sleeps}
            server = await start(section, self._engine, run_dir=self._folder, name=name, identity=identity, **further)
        self._servers[identity] = server
        endpoint = Endpoint(server.url, self._engine, revive=server.revive)
        await endpoint.open()
        self._endpoints[identity] = [endpoint]
        tokens = reach.load_tokens(section, self._engine)
        return Client([endpoint], self._engine, identity=identity, name=server.model_name, tokenizer=tokens)

    async def _load(self, model: Lazy, adapter: Adapter) -> Model:
        """Load an adapter into the server of its base; both share the server's level of concurrency."""
        await self._served(adapter.base)
        base = adapter.base.identity
        with self._meter.stage(f"load adapter {model.name}", 1):
            await self._servers[base].load_adapter(model.name, adapter.folder)
        tokens = reach.load_tokens(model.section, self._engine)
        return Client(self._endpoints[base], self._engine, identity=model.identity, name=model.name, tokenizer=tokens)

    @property
    def _loras(self) -> list[LoraSection]:
        """The adapters that this run trains."""
        trained = [getattr(self._config.train, p.train).lora for p in self._config.phases if p.train != "none"]
        return [lora for lora in trained if lora]

    @property
    def _loads_adapters(self) -> bool:
        # With an adapter on the output layer, vLLM takes no part of it for the log-probabilities of prompts.
        return loads_adapters(self._engine) and all("lm_head" not in lora.targets for lora in self._loras)

    def _adapters(self, section: ModelSection) -> Adapters | None:
        """Return what adapters may be loaded beside this model, or None where none will be."""
        if section.checkpoint != self._config.models.policy.checkpoint or not self._loads_adapters or not self._loras:
            return None
        rank, layers = max(lora.r for lora in self._loras), set[str]()
        for targets in {lora.targets for lora in self._loras} if self._engine.kind == "vllm" else ():
            every = targets == "all-linear"
            layers |= set(self._linear_layers(section) if every else targets)
        return Adapters(rank, tuple(sorted(layers)))

    @staticmethod
    def _linear_layers(section: ModelSection) -> tuple[str, ...]:
        checkpoint, trusted = resolve(str(section.checkpoint)), section.trust_remote_code
        return linear_layers(checkpoint, section.revision, trust_remote_code=trusted)


async def start(section: ModelSection, engine: EngineSection, **further: Any) -> servers.Server:
    """Return a server of the model that a section names; `further` as `cai.engine.server.start` takes it."""
    checkpoint = str(section.checkpoint)
    return await servers.start(
        checkpoint if engine.kind == "scripted" else resolve(checkpoint),
        engine,
        revision=section.revision,
        trust_remote_code=section.trust_remote_code,
        **further,
    )


def identity_of(section: ModelSection, engine: EngineSection) -> str:
    """Return the identity of the model a section names, without serving it."""
    if engine.kind == "scripted" and not section.base_url:
        # The script answers whatever the checkpoint, which is named all the same: it is what gets trained.
        trained = Path(str(section.checkpoint))
        return "scripted:" + (model_identity(str(trained)) if trained.is_dir() else "") + _script(engine.args)
    if section.checkpoint is None:
        if section.served_name and section.revision:  # says which weights these are, wherever they are served
            return f"{section.served_name}@{section.revision}"
        return f"{section.served_name or 'served'}@{section.revision or 'unknown'} at {_hosts(section.base_url)}"
    trusted = section.trust_remote_code
    return model_identity(resolve(section.checkpoint), section.revision, trust_remote_code=trusted)


def is_here(section: ModelSection, engine: EngineSection | None) -> bool:
    """Return whether the identity of a model can be told without a network; `engine` None is that of a reward model."""
    if section.checkpoint is None or (engine and engine.kind == "scripted" and not section.base_url):
        return True
    try:
        model = resolve(section.checkpoint)
    except UserError:
        return False
    return Path(model).is_dir() or cached_commit(model, section.revision) is not None


def _script(arguments: Sequence[str]) -> str:
    """Return the arguments that decide what a scripted server answers; trouble and latency do not."""
    pairs = zip(arguments, arguments[1:], strict=False)
    return " ".join(f"{name} {value}" for name, value in pairs if name in ("--judge", "--seed"))


def _hosts(urls: Sequence[str]) -> str:
    return ",".join(sorted(urls))
