"""Benchmarks: what the models do, what they cost and how they compare; run ``python -m benchmarks.NAME`` in Testing."""
