"""Trainer, FSDP, checkpoints and progress, shared by pretraining and evaluation."""
