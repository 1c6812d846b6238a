"""Numbers of training that follow from the step alone: the learning rate, and how fast running averages forget."""

from sae_lm.penalties.term import warm_up_share

THRESHOLD_MEMORY = 100
"""Batches over which BatchTopK's threshold is averaged, or a twentieth of the run if that is less; SAELens 6 has the
same number (topk_threshold_lr = .01)."""
FIRING_MEMORY = 0.01
"""Weight of the newest batch in each latent's firing frequency, and before the hundredth step the plain mean."""


def learning_rate(step: int, steps: int, peak: float, warm_up: float, decay: float) -> float:
    """Linear warm-up over the first share of steps, constant, linear decay to 0 over the last share."""
    fall = (steps - step) / max(1.0, decay * steps)
    return peak * min(warm_up_share(step, warm_up * steps), fall)


def threshold_weight(step: int, steps: int) -> float:
    """Weight of the newest batch in the averaged threshold of BatchTopK; the first batch's is taken whole."""
    return 1 / max(1.0, min(THRESHOLD_MEMORY, steps / 20)) if step else 1.0


def firing_weight(step: int) -> float:
    """Weight of the newest batch in each latent's firing frequency."""
    return max(FIRING_MEMORY, 1 / (step + 1))
