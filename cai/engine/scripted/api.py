"""The routes: from a request to a reply, with nothing in between that waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import Any
from urllib.parse import parse_qs
from zlib import crc32

import orjson

from cai.engine.bytetokens import ByteTokenizer
from cai.engine.scripted import shapes
from cai.engine.scripted.asking import Asking, Script, fields_of, rendered
from cai.engine.scripted.asks import ApiError, prompt_of
from cai.engine.scripted.faults import Fault, FaultPlan
from cai.engine.scripted.tally import Tally
from cai.engine.scripted.wire import Reply, Request

_TOKENIZER = ByteTokenizer()

VERSION = "0.32.0+scripted"
"""The vLLM release whose API this is."""

_STATUS_KINDS = {429: "TooManyRequestsError", 500: "InternalServerError", 503: "ServiceUnavailableError"}
_ENDINGS = ("reset", "truncate", "hang")


@dataclass
class Api:
    """One server's state and routes."""

    script: Script
    die: Callable[[], None]
    """Called when a fault plan says that the server dies."""

    def __post_init__(self) -> None:
        self.plan = FaultPlan(self.script.faults, self.script.seed)
        self.tally = Tally(self.script.count_keys)
        self.asking = Asking(self.script, self.tally)
        self.is_sleeping = False
        self.is_hanging = False
        self._ends: list[float] = []
        """When each request that is in hand will be answered."""
        self._routes: dict[tuple[bytes, bytes], Callable[[Request], Reply | dict[str, Any]]] = {
            (b"GET", b"/health"): self._health,
            (b"GET", b"/version"): lambda _: {"version": VERSION},
            (b"GET", b"/v1/models"): self._models,
            (b"GET", b"/metrics"): self._metrics,
            (b"GET", b"/stats"): self._stats,
            (b"POST", b"/tokenize"): self._tokenize,
            (b"POST", b"/detokenize"): self._detokenize,
            (b"POST", b"/v1/load_lora_adapter"): self._load_adapter,
            (b"POST", b"/v1/unload_lora_adapter"): self._unload_adapter,
            (b"POST", b"/sleep"): self._sleep,
            (b"POST", b"/wake_up"): self._wake_up,
            (b"GET", b"/is_sleeping"): lambda _: {"is_sleeping": self.is_sleeping},
        }
        self._asking: dict[bytes, Callable[[Request, frozenset[str]], dict[str, Any]]] = {
            b"/v1/chat/completions": self.asking.chat,
            b"/v1/completions": self.asking.complete,
            b"/generative_scoring": self.asking.score,
        }

    def answer(self, request: Request) -> Reply:
        """Return the reply to `request`, faults and delays included."""
        self.tally.requests[request.path.decode("latin-1")] += 1
        if request.method == b"POST" and request.path in self._asking:
            reply = self._answer_asking(request)
        else:
            reply = self._answer_other(request)
        self.tally.statuses[str(reply.status)] += 1
        return reply

    def _answer_other(self, request: Request) -> Reply:
        route = self._routes.get((request.method, request.path))
        if route is None:
            is_known = request.path in self._asking or any(path == request.path for _, path in self._routes)
            return _json({"detail": "Method Not Allowed" if is_known else "Not Found"}, 405 if is_known else 404)
        return _guarded(lambda: route(request))

    def _answer_asking(self, request: Request) -> Reply:
        self.tally.n_asked += 1
        if self.tally.bodies is not None:
            self.tally.bodies.add(request.path, request.body)
        if self.plan.most_in_hand and self._n_in_hand() >= self.plan.most_in_hand:
            self.tally.faults["busy"] += 1
            return _failure(self.plan.busy)
        faults = self.plan.pick(self.tally.n_asked, request.path, request.body)
        for fault in faults:
            self.tally.faults[fault.kind] += 1
        kinds = frozenset(fault.kind for fault in faults)
        if "die" in kinds:
            self.die()
            return Reply(ending="reset")
        reply = next((_failure(fault) for fault in faults if fault.kind.isdigit()), None)
        if reply is None and "hang" not in kinds:
            reply = _guarded(lambda: self._ask(request, kinds))
        delay_s = self._delay_s(request, faults)
        if self.plan.most_in_hand:
            heappush(self._ends, inf if "hang" in kinds else time.monotonic() + delay_s)
        return self._spoiled(reply or Reply(), kinds)._replace(delay_s=delay_s)

    def _n_in_hand(self) -> int:
        while self._ends and self._ends[0] <= time.monotonic():
            heappop(self._ends)
        return len(self._ends)

    def _spoiled(self, reply: Reply, kinds: frozenset[str]) -> Reply:
        if "badjson" in kinds:
            return reply._replace(body=reply.body[: len(reply.body) * 2 // 3])
        for ending in _ENDINGS:
            if ending in kinds:
                self.is_hanging |= ending == "hang"
                return reply._replace(ending=ending)
        return reply

    def _delay_s(self, request: Request, faults: list[Fault]) -> float:
        delay_s = self.script.latency_ms / 1000 + sum(fault.delay_s for fault in faults)
        if self.script.jitter_ms:
            delay_s += self.script.jitter_ms / 1000 * crc32(request.body) / 2**32
        return delay_s

    def _ask(self, request: Request, kinds: frozenset[str]) -> dict[str, Any]:
        if self.is_sleeping:
            raise ApiError("The engine is sleeping.", status=503, kind="ServiceUnavailableError")
        return self._asking[request.path](request, kinds)

    def _health(self, request: Request) -> Reply:
        hangs = self.is_hanging and not self.plan.hang_leaves_health
        return Reply(ending="hang" if hangs else "reply")

    def _models(self, request: Request) -> dict[str, Any]:
        return shapes.model_list(self.script.models, self.asking.adapters, self.script.max_model_len)

    def _metrics(self, request: Request) -> Reply:
        label = f'{{model_name="{self.script.models[0]}"}}'
        lines = (
            f"vllm:prompt_tokens_total{label} {self.tally.prompt_tokens}",
            f"vllm:generation_tokens_total{label} {self.tally.generated_tokens}",
            f"vllm:request_success_total{label} {self.tally.prompts}",
        )
        return Reply(body="".join(f"{line}\n" for line in lines).encode(), content_type=b"text/plain; version=0.0.4")

    def _stats(self, request: Request) -> dict[str, Any]:
        return self.tally.summary(with_keys=b"keys" in request.query)

    def _tokenize(self, request: Request) -> dict[str, Any]:
        asked = fields_of(request)
        self.asking.model_of(asked)
        prompt = asked.get("prompt") if "prompt" in asked else rendered(asked)
        if not isinstance(prompt, str):
            raise ApiError("prompt must be a string.", "prompt")
        ids = _TOKENIZER.encode(prompt)
        strings = [shapes.TOKEN_TEXTS[i] for i in ids] if asked.get("return_token_strs") else None
        return {"count": len(ids), "max_model_len": self.script.max_model_len, "tokens": ids, "token_strs": strings}

    def _detokenize(self, request: Request) -> dict[str, Any]:
        asked = fields_of(request)
        self.asking.model_of(asked)
        return {"prompt": prompt_of(asked.get("tokens"))[0].decode(errors="replace")}

    def _load_adapter(self, request: Request) -> Reply:
        asked = fields_of(request)
        name, path = asked.get("lora_name"), asked.get("lora_path")
        if not name or not path:
            raise ApiError("Both 'lora_name' and 'lora_path' must be provided.", kind="InvalidUserInput")
        if name in self.script.models:
            raise ApiError(f"The lora adapter '{name}' conflicts with a served base model.", kind="InvalidUserInput")
        if name in self.asking.adapters and not asked.get("load_inplace"):
            raise ApiError(
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
                "set 'load_inplace' to True.",
                kind="InvalidUserInput",
            )
        self.asking.adapters[name] = path
        return Reply(body=f"Success: LoRA adapter '{name}' added successfully.".encode(), content_type=b"text/plain")

    def _unload_adapter(self, request: Request) -> Reply:
        name = fields_of(request).get("lora_name")
        if name not in self.asking.adapters:
            raise ApiError(f"The lora adapter '{name}' cannot be found.", status=404, kind="NotFoundError")
        del self.asking.adapters[name]
        return Reply(body=f"Success: LoRA adapter '{name}' removed successfully.".encode(), content_type=b"text/plain")

    def _sleep(self, request: Request) -> dict[str, Any]:
        level = parse_qs(request.query.decode("latin-1")).get("level", ["1"])[0]
        if level not in ("0", "1", "2"):
            raise ApiError(f"level must be an integer in [0, 2], got '{level}'.", "query.level")
        self.is_sleeping = True
        return {"status": "sleeping", "level": int(level)}

    def _wake_up(self, request: Request) -> dict[str, Any]:
        tags = parse_qs(request.query.decode("latin-1")).get("tags")
        self.is_sleeping = False
        return {"status": "awake", "tags": tags}


def _guarded(work: Callable[[], Reply | dict[str, Any]]) -> Reply:
    try:
        made = work()
    except ApiError as error:
        return _json(error.body, error.status)
    return made if isinstance(made, Reply) else _json(made)


def _json(content: dict[str, Any], status: int = 200) -> Reply:
    return Reply(status, orjson.dumps(content))


def _failure(fault: Fault) -> Reply:
    status = int(fault.kind)
    kind = _STATUS_KINDS.get(status, "BadRequestError" if status < 500 else "InternalServerError")
    body = {"error": {"message": f"scripted fault {status}", "type": kind, "param": None, "code": status}}
    headers = b"" if fault.retry_after is None else b"Retry-After: %b\r\n" % fault.retry_after.encode()
    return _json(body, status)._replace(headers=headers)
