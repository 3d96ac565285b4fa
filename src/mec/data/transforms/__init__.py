"""Crops, color and the views made of them."""
