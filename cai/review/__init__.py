"""Human spot-checks: blind, sampled with known probabilities, appended to the run's ledger, and folded by settle."""

from cai.review.desk import SIDES, Desk, Shown

__all__ = ["SIDES", "Desk", "Shown"]
