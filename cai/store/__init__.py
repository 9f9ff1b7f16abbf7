"""What a run keeps: model calls, the records they became, and the ledger of decisions, in one SQLite file."""
