"""What a scripted server does wrong on purpose.

Whether a clause fires is decided by a hash of the seed, the clause, the request's body and how often that body came
before, so that a run can be repeated and a retry may succeed; or by the number of the request.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from difflib import get_close_matches
from hashlib import blake2b
from typing import NamedTuple

from cai.engine.scripted.rules import draws
from cai.errors import UserError

FAULTS_HELP = """\
SPEC is one or more clauses with ';' between them:  KIND[:SHARE][@NUMBERS][=MS][,retry-after=SECONDS]
  SHARE      fires on that share of the requests (0 to 1), by hash of the request and of how often it was tried
  @NUMBERS   only on those requests: @10, @10-20 or @10- ; requests that ask the model are counted from 1
  neither    fires on every request
KIND is one of
  400 to 599   answers with that status; `retry-after` adds the header
  reset        closes the connection without a reply
  truncate     closes the connection in the middle of the reply
  badjson      a reply that is cut in the middle, with a matching length
  nologprobs   a reply without log-probabilities or scores
  cut          generated text is cut in half, with finish_reason "length"
  slow         the reply comes MS later, as in slow:0.1=200
  hang         no reply, ever; from the first hang on /health does not reply either
  die          the server is gone at once
  busy>N       answers 429 while N requests are in hand; alone or with `retry-after`
and the clause `hang-health-ok` keeps /health green while requests hang.
Example: 429:0.05,retry-after=0.2;503@10-20;reset:0.01;slow:0.1=200;hang@30;hang-health-ok
"""

KINDS = ("reset", "truncate", "badjson", "nologprobs", "cut", "slow", "hang", "die")
_CLAUSE = re.compile(
    r"([a-z]+|[45]\d\d)(?::([^@=,]+))?(?:@(\d+)(-(\d*))?)?(?:=(\d+(?:\.\d+)?))?(?:,retry-after=(\d+(?:\.\d+)?))?"
)
_BUSY = re.compile(r"busy>([1-9]\d*)(?:,retry-after=(\d+(?:\.\d+)?))?")
_REMEMBERED = 1_000_000
_FORM = "KIND[:SHARE][@NUMBERS][=MS][,retry-after=SECONDS]"


class Fault(NamedTuple):
    """One clause of a fault plan."""

    kind: str
    """A status code as text, or one of KINDS."""

    share: float = 1.0
    first: int = 1
    last: float = float("inf")
    delay_s: float = 0.0
    retry_after: str | None = None


class FaultPlan:
    """Decides which faults a request meets. Remembers how often each of the last million bodies was tried."""

    def __init__(self, spec: str = "", seed: int = 0) -> None:
        clauses = [clause.strip() for clause in spec.split(";") if clause.strip()]
        self.hang_leaves_health = "hang-health-ok" in clauses
        busy = [match for clause in clauses if (match := _BUSY.fullmatch(clause))]
        self.most_in_hand = int(busy[0][1]) if busy else None
        """How many requests it takes at a time."""
        self.busy = Fault("429", retry_after=busy[0][2] if busy else None)
        """What the others meet."""
        others = (c for c in clauses if c != "hang-health-ok" and not _BUSY.fullmatch(c))
        self.faults = tuple(_parse(clause) for clause in others)
        self._seed = b"%d" % seed
        self._by_share = any(fault.share < 1.0 for fault in self.faults)
        self._attempts: OrderedDict[bytes, int] = OrderedDict()

    def pick(self, number: int, path: bytes, body: bytes) -> list[Fault]:
        """Return the faults of the request with this `number`: every `slow` that fires and the first of the others."""
        if not self.faults:
            return []
        fired: list[Fault] = []
        for fault in self._firing(number, path, body):
            if fault.kind == "slow" or all(other.kind == "slow" for other in fired):
                fired.append(fault)
        return fired

    def _firing(self, number: int, path: bytes, body: bytes) -> Iterator[Fault]:
        key = blake2b(path + b"\0" + body, digest_size=16).digest() if self._by_share else b""
        attempt = b"%d" % self._attempt(key)
        for index, fault in enumerate(self.faults):
            if not fault.first <= number <= fault.last:
                continue
            if fault.share == 1.0 or draws(self._seed, b"%d" % index, attempt, key)[0] < fault.share:
                yield fault

    def _attempt(self, key: bytes) -> int:
        attempt = self._attempts.pop(key, 0) + 1
        self._attempts[key] = attempt
        if len(self._attempts) > _REMEMBERED:
            self._attempts.popitem(last=False)
        return attempt


def _parse(clause: str) -> Fault:
    match = _CLAUSE.fullmatch(clause)
    if match is None:
        raise UserError(f"--faults: '{clause}' is no clause; expected {_FORM}, as in '429:0.05,retry-after=0.2'")
    kind, share, first, span, last, delay_ms, retry_after = match.groups()
    if kind not in KINDS and not kind.isdigit():
        near = get_close_matches(kind, (*KINDS, "hang-health-ok"), n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise UserError(f"--faults: '{kind}' in '{clause}' is no fault{hint}; expected 400 to 599, {', '.join(KINDS)}")
    if (kind == "slow") != (delay_ms is not None):
        raise UserError(f"--faults: '{clause}': milliseconds belong to slow, and slow needs them, as in 'slow:0.1=200'")
    if retry_after is not None and not kind.isdigit():
        raise UserError(f"--faults: '{clause}': retry-after belongs to a status, as in '429:0.05,retry-after=0.2'")
    begin = int(first) if first else 1
    end = float("inf") if first is None or (span and not last) else int(last or first)
    if begin < 1 or end < begin:
        raise UserError(f"--faults: '{clause}': requests count from 1 and a range goes upwards, as in '503@10-20'")
    return Fault(kind, _share(share, clause), begin, end, float(delay_ms or 0) / 1000, retry_after)


def _share(text: str | None, clause: str) -> float:
    if text is None:
        return 1.0
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise UserError(f"--faults: '{clause}': found the share '{text}'; expected a number between 0 and 1")
    return share
