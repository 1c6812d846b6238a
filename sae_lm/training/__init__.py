"""Batches to trained SAEs: one recipe for all arms, their steps, checkpoints, logs and run folder."""
