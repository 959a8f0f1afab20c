"""Benchmarks: ratios and memory, measured in one run on one machine. Never part of the tests."""
