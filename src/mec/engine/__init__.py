"""Trainer, checkpoints and progress shared by every training."""
