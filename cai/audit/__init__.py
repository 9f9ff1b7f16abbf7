"""Audit: why a label is what it is, whether what is kept can be trusted, and the questions auditors ask."""
