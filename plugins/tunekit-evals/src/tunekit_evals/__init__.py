"""Benchmarks and the scoring engine."""
