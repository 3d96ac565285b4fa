"""Tracking with frozen features: nothing is trained (UniTrack, Wang et al. 2021)."""
