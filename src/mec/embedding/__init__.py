"""Embed a dataset into one table; near-duplicates and outliers."""
