"""Metrics of the tracking benchmarks."""
