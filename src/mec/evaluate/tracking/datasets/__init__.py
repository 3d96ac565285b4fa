"""Readers and writers of tracking benchmarks."""
