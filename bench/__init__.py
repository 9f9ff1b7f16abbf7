"""Benchmarks: each a command that compares in one run and prints a table or JSON.

python -m bench               the ones that need no peer; writes bench/results.json and docs/benchmarks.svg
python -m bench.orchestrator  judgments/s of one process and peak memory, against a server that costs nothing
python -m bench.incremental   what an edit costs
python -m bench.judge         16 principles in both orders, against principle-first chat completions
python -m bench.pipeline      the whole walk against its floor
python -m bench.peers         the same job through distilabel and NeMo Data Designer
"""
