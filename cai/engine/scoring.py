"""Reading what servers answer: generated text, probabilities of offered letters, likelihoods.

A reply that cannot be read becomes a Reply with `error` (an invalid judgment later), never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from cai.engine.model import Reply

LEAST_LOGPROB = -1e9
"""Stands for a probability of zero, since JSON has no infinity."""

SHARES, COMPLETIONS, CHAT = "/generative_scoring", "/v1/completions", "/v1/chat/completions"
"""The roads by which a judgment can be asked: the first two with token ids."""


class Roads:
    """The roads by which one server can be asked to score, and what each was found to take.

    Each is gone by in turn until all have been measured `TRIALS` times; from then on the one that takes the least.
    """

    TRIALS = 3

    def __init__(self, roads: Sequence[str]) -> None:
        self.seconds: dict[str, list[float]] = {road: [] for road in roads}
        self.not_offered: list[str] = []
        self.answered: set[str] = set()
        """Those that have brought probabilities: from then on a refusal is the request's own fault."""
        self._tried = dict.fromkeys(roads, 0)

    def offers(self, road: str) -> bool:
        """Return whether the server may offer a road: nothing has shown that it does not."""
        return road in self.seconds

    def next(self) -> str:
        """Return the road to go by now."""
        untried = [road for road, n in self._tried.items() if n < self.TRIALS]
        road = min(untried, key=self._tried.__getitem__) if untried else min(self._tried, key=self.median_s)
        self._tried[road] += 1
        return road

    def note(self, road: str, seconds_per_prompt: float) -> None:
        """Keep what a road took, while it is on trial."""
        measured = self.seconds.get(road)
        if measured is not None and len(measured) < self.TRIALS:
            measured.append(seconds_per_prompt)

    def drop(self, road: str) -> None:
        """Never go by this road again: the server does not offer it."""
        if road in self.seconds:
            self.not_offered.append(road)
        self.seconds.pop(road, None)
        self._tried.pop(road, None)

    def as_dict(self) -> dict[str, Any]:
        """Return the road gone by, the milliseconds per prompt that each took, and the roads that were not offered.

        Empty where there was nothing to choose.
        """
        took = {road: round(1000 * self.median_s(road), 3) for road, measured in self.seconds.items() if measured}
        found = {"taken": min(took, key=took.__getitem__), "ms_per_prompt": took} if took else {}
        return found | ({"not_offered": self.not_offered} if self.not_offered else {})

    def median_s(self, road: str) -> float:
        """Return the seconds per prompt that a road took; infinite where it was never come to its end."""
        return median(self.seconds[road]) if self.seconds[road] else math.inf


class AllRoads:
    """The roads of every server of a model; each has its own."""

    def __init__(self, servers: Sequence[tuple[str, Roads]]) -> None:
        """`servers` are (URL, roads)."""
        self._servers = servers

    def drop(self, road: str) -> None:
        """Go by a road to none of them."""
        for _, roads in self._servers:
            roads.drop(road)

    def as_dict(self) -> dict[str, Any]:
        """Return the same as Roads, of all together; what only some do not offer stands under `not_offered_by`."""
        whole = Roads(())
        for _, roads in self._servers:
            for road, measured in roads.seconds.items():
                whole.seconds.setdefault(road, []).extend(measured)
        lacking = [road for _, roads in self._servers for road in roads.not_offered]
        whole.not_offered = [road for road in dict.fromkeys(lacking) if lacking.count(road) == len(self._servers)]
        only = {url: [r for r in roads.not_offered if r not in whole.not_offered] for url, roads in self._servers}
        only = {url: roads for url, roads in only.items() if roads}
        return whole.as_dict() | ({"not_offered_by": only} if only else {})


class Unreadable(Exception):
    """An answer that lacks what was asked for; the message is a word to group by."""


def usage(answer: Any) -> dict[str, Any]:
    """Return the token counts of an answer as Reply fields."""
    said = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(said, dict):
        return {}
    details = said.get("prompt_tokens_details")
    return {
        "n_prompt": _count(said.get("prompt_tokens")) or 0,
        "n_completion": _count(said.get("completion_tokens")) or 0,
        "n_cached": _count(details.get("cached_tokens")) if isinstance(details, dict) else None,
    }


def _count(found: Any) -> int | None:
    """Return a count, or None for what is none: figures are no reason to lose an answer."""
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None


def choices(answer: Any, n: int) -> list[dict[str, Any]]:
    """Return the `n` choices of an answer in order. Raises Unreadable where there are not as many."""
    return _in_order(answer.get("choices") if isinstance(answer, dict) else None, n)


def _in_order(found: Any, n: int) -> list[dict[str, Any]]:
    if not isinstance(found, list) or len(found) != n or not all(isinstance(part, dict) for part in found):
        raise Unreadable("wrong_number_of_choices")
    places = [part.get("index") for part in found] if n > 1 else [0]
    if not all(type(i) is int for i in places) or sorted(places) != list(range(n)):
        # Whose answer is whose cannot be told; one taken for another would be a wrong verdict.
        raise Unreadable("wrong_indices")
    return [part for _, part in sorted(zip(places, found, strict=True), key=lambda pair: pair[0])]


def generated(choice: dict[str, Any]) -> Reply:
    """Return the text of one choice, from a completion or a chat completion."""
    text = choice["message"].get("content") if isinstance(choice.get("message"), dict) else choice.get("text")
    if not isinstance(text, str):
        return Reply(text="", finish_reason="error", error="no_text", raw=choice)
    return Reply(text=text, finish_reason=choice.get("finish_reason") or "unknown")


def scored_by_id(choice: dict[str, Any], option_ids: Sequence[int], options: Sequence[str]) -> Reply:
    """Return the options' log-probabilities from a completion's first token, asked for by token id.

    vLLM keys them `token_id:123` when asked with `return_tokens_as_token_ids`.
    """
    try:
        table = choice["logprobs"]["top_logprobs"][0]
        found = {option: _logprob(table[f"token_id:{id_}"]) for option, id_ in zip(options, option_ids, strict=True)}
    except (KeyError, IndexError, TypeError, ValueError):
        return Reply(error="no_probabilities", raw=choice)
    return _scored(found)


def scored_by_share(answer: Any, n: int, options: Sequence[str]) -> list[Reply]:
    """Return the log-probabilities of two options from `/generative_scoring`: one share per prompt, of the first one.

    How much probability lies outside the two it does not tell. Raises Unreadable where there are not `n` shares.
    """
    found = _in_order(answer.get("data") if isinstance(answer, dict) else None, n)
    return [_share(item, options) for item in found]


def _share(item: dict[str, Any], options: Sequence[str]) -> Reply:
    share = item.get("score")
    if isinstance(share, bool) or not isinstance(share, float | int) or not 0 <= share <= 1:
        return Reply(error="no_probabilities", raw=item)
    logprobs = [math.log(p) if p > 0 else LEAST_LOGPROB for p in (share, 1 - share)]
    return Reply(logprobs=dict(zip(options, logprobs, strict=True)))


def scored_by_text(choice: dict[str, Any], options: Sequence[str]) -> Reply:
    """Return the options' log-probabilities from a chat completion's first token, found by what the tokens spell.

    Tokens that spell the same option (`A`, ` A`) are added up. Where none spells an option whole, those count by which
    it alone begins. An option that is not among the listed tokens has at most the probability of the least likely token
    listed; it is given none.
    """
    try:
        listed = choice["logprobs"]["content"][0]["top_logprobs"]
        spelled = [
            (str(item["token"]).strip(" \n\"'(*_▁Ġ").rstrip(").:"), _logprob(item["logprob"])) for item in listed
        ]
    except (KeyError, IndexError, TypeError, ValueError):
        refusal = (choice.get("message") or {}).get("refusal") if isinstance(choice.get("message"), dict) else None
        return Reply(error="refused" if refusal else "no_probabilities", raw=choice)
    if any(math.isnan(lp) or lp > 1e-3 for _, lp in spelled):
        return Reply(error="not_probabilities", raw=choice)
    found = {option: _spelling(option, options, spelled) for option in options}
    if not any(found.values()):
        return Reply(error="outside_options", raw=choice)
    return _scored({option: _sum(lps) for option, lps in found.items()})


def _spelling(option: str, options: Sequence[str], spelled: Sequence[tuple[str, float]]) -> list[float]:
    whole = [lp for token, lp in spelled if token == option]
    others = [other for other in options if other != option]
    return whole or [
        lp
        for token, lp in spelled
        if token and option.startswith(token) and not any(o.startswith(token) for o in others)
    ]


def _sum(logprobs: Sequence[float]) -> float:
    """Return the log-probability of any of some tokens; that of a single one as it is, to the last bit."""
    if len(logprobs) == 1:
        return logprobs[0]
    mass = math.fsum(math.exp(lp) for lp in logprobs)
    return math.log(mass) if mass > 0 else LEAST_LOGPROB


def _logprob(found: Any) -> float:
    """Return a number as it stands. Raises TypeError for what is none: text, or a truth value."""
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise TypeError(f"found {found!r}, expected a number")
    return float(found)


def _scored(logprobs: dict[str, float]) -> Reply:
    if any(math.isnan(v) or v > 1e-3 for v in logprobs.values()):
        return Reply(error="not_probabilities", raw={option: str(v) for option, v in logprobs.items()})
    kept = {option: max(v, LEAST_LOGPROB) for option, v in logprobs.items()}
    outside = max(0.0, 1 - math.fsum(math.exp(v) for v in kept.values()))
    return Reply(logprobs=kept, outside=outside)


def likelihood(choice: dict[str, Any], n_answer: int) -> Reply:
    """Return the summed log-likelihood of the last `n_answer` prompt tokens (vLLM's `prompt_logprobs`)."""
    table = choice.get("prompt_logprobs")
    if not isinstance(table, list) or len(table) < n_answer:
        return Reply(error="no_probabilities")
    try:
        total = math.fsum(_only(entry) for entry in table[len(table) - n_answer :])
    except (TypeError, ValueError, KeyError, AttributeError):
        return Reply(error="no_probabilities")
    return Reply(logp=total, n_completion=n_answer)


def _only(entry: dict[str, Any]) -> float:
    """Return the log-probability of the token that stands there: the entry's only one when none are asked beside it.

    With `prompt_logprobs: 0` vLLM lists the token itself; where the likeliest one is listed too, ours comes first.
    """
    return float(next(iter(entry.values()))["logprob"])
