"""Train SAEs on batches of activations: one recipe for all arms, their steps, checkpoints, logs and run folder."""
