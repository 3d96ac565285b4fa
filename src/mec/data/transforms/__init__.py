"""Augmentations: crops, color, and the views made of them."""
