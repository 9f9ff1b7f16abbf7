"""What keeps personal data and offensive answers out of training sets.

Telephone numbers are found by `phonenumbers` (Google's libphonenumber), offensive text by `alt-profanity-check` (a
linear model over words). Both come with the `filters` extra. The rest are patterns with their checksums, so
what is bounded is known: e-mail and IP addresses, payment cards (Luhn), IBANs (mod 97), US social security numbers.
Names, street addresses and dates of birth are NOT found.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Any

from cai.errors import UserError, install_extra

_EMAIL = re.compile(r"[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}")
_EXAMPLE = re.compile(r"@(?:[\w-]+\.)*(?:example\.(?:com|org|net)|[\w-]+\.(?:example|invalid|test))$", re.I)
"""Domains that are set aside for examples (RFC 2606); nobody can be reached there."""
_IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
_CARD = re.compile(r"(?<!\d)(?:\d[ -]?){12,18}\d(?!\d)")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_SSN = re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")


def personal(text: str) -> str | None:
    """Return what kind of personal data a text holds, or None. Raises UserError without `phonenumbers`."""
    if any(not _EXAMPLE.search(found) for found in _EMAIL.findall(text)):
        return "e-mail address"
    if _SSN.search(text):
        return "social security number"
    if any(_luhn(found) for found in _CARD.findall(text)):
        return "payment card"
    if any(_mod_97(found) for found in _IBAN.findall(text)):
        return "IBAN"
    if any(_is_public(found) for found in _IPV4.findall(text)):
        return "IP address"
    if sum(c.isdigit() for c in text) >= 7 and _telephone(text):
        return "telephone number"
    return None


def offensive(texts: Sequence[str]) -> list[float]:
    """Return the probability that each text is offensive (0 to 1). Raises UserError without `alt-profanity-check`."""
    return [float(p) for p in _library("profanity_check", "toxicity").predict_prob(list(texts))] if texts else []


def _telephone(text: str) -> bool:
    phonenumbers = _library("phonenumbers", "pii")
    # "US" reads numbers without a country code; those with one are found wherever they are from.
    return phonenumbers.PhoneNumberMatcher(text, "US", leniency=phonenumbers.Leniency.VALID).has_next()


def _luhn(found: str) -> bool:
    digits = [int(c) for c in found if c.isdigit()]
    doubled = [d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(reversed(digits))]
    return len(set(digits)) > 1 and digits[0] in (2, 3, 4, 5, 6) and sum(doubled) % 10 == 0


def _mod_97(found: str) -> bool:
    compact = found.replace(" ", "")
    return len(compact) >= 15 and int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _is_public(found: str) -> bool:
    try:
        return ipaddress.ip_address(found).is_global
    except ValueError:
        return False


def _library(name: str, key: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        off = "pii: keep" if key == "pii" else "toxicity: null"
        raise UserError(
            f"{key}: needs the library '{name}', which is not installed; install it {install_extra('filters')}, or "
            f"set {off} to go without"
        ) from error
