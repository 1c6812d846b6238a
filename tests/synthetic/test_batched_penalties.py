"""sae_lm.synthetic.batched_penalties: the trainer's, in value and gradient."""

import pytest
import torch
from reference import cosines

from sae_lm.penalties.align import align
from sae_lm.penalties.c2r import activation_norms, c2r
from sae_lm.penalties.coactive import coactive
from sae_lm.penalties.max_cos import max_cos
from sae_lm.penalties.pairwise import abs_cos, freq_cos, sq_cos
from sae_lm.penalties.silent import silent
from sae_lm.sae.sparse import Codes
from sae_lm.synthetic.batched_penalties import penalties


def random_case(seed: int, m: int = 7, n: int = 40):
    """Rows of any norm and codes of a batch with the same number of active latents on no two rows."""
    draws = torch.Generator().manual_seed(seed)
    rows = torch.randn(m, 5, generator=draws, dtype=torch.float64) * (0.5 + torch.rand(m, 1, generator=draws))
    on = torch.rand(n, m, generator=draws) < 0.3
    rate = torch.rand(m, generator=draws, dtype=torch.float64)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), on.sum(1).cumsum(0)])
    latent = on.nonzero()[:, 1]
    return rows, on, Codes(starts, latent, torch.ones(len(latent), dtype=torch.float64), rate)


def coactivation_over(margin: float, rows, codes):
    """coactive of what cosines have above a margin, which the trainer's does not have, pair by pair."""
    fires = torch.zeros(len(codes.starts) - 1, len(rows), dtype=rows.dtype)
    fires[torch.arange(len(fires)).repeat_interleave(codes.starts.diff()), codes.latent] = 1
    excess = (cosines(rows).abs() - margin).clamp_min(0)
    return (fires.T @ fires * excess.square()).sum() / fires.sum()


@pytest.mark.parametrize(
    ("name", "anchored", "margin", "real"),
    [
        ("abs_cos", False, 0.0, lambda r, c: abs_cos(r)),
        ("abs_cos", False, 0.2, lambda r, c: abs_cos(r, margin=0.2)),
        ("sq_cos", False, 0.0, lambda r, c: sq_cos(r)),
        ("max_cos", False, 0.0, lambda r, c: max_cos(r)),
        ("max_cos", False, 0.2, lambda r, c: max_cos(r, margin=0.2)),
        ("max_cos", True, 0.0, lambda r, c: max_cos(r, codes=c, anchored=True)),
        ("freq_cos", False, 0.0, lambda r, c: freq_cos(r, codes=c)),
        ("coactive", False, 0.0, lambda r, c: coactive(r, codes=c)),
        ("coactive", True, 0.0, lambda r, c: coactive(r, codes=c, anchored=True)),
        ("coactive", False, 0.2, lambda r, c: coactivation_over(0.2, r, c)),
        ("c2r", False, 0.0, lambda r, c: c2r(r, codes=c)),
        ("c2r", True, 0.0, lambda r, c: c2r(r, codes=c, anchored=True)),
        ("silent", False, 0.0, lambda r, c: silent(r, codes=c)),
        ("align", False, 0.0, lambda r, c: align(r, encoder=r.detach().flip(1))),
    ],
    ids=lambda value: str(value) if isinstance(value, (str, bool, float)) else "",
)
def test_a_batched_penalty_is_the_trainers_in_value_and_gradient(name, anchored, margin, real):
    cases = [random_case(seed) for seed in range(6)]
    rows = torch.stack([rows for rows, _, _ in cases]).view(2, 3, 7, 5).requires_grad_()
    rate = torch.stack([codes.firing_frequency for *_, codes in cases]).view(2, 3, 7)
    on = torch.stack([on for _, on, _ in cases]).double().view(2, 3, 40, 7)
    margins = torch.full((2, 1, 1), margin, dtype=torch.float64)
    norms = torch.stack([activation_norms(codes) for *_, codes in cases]).view(2, 3, 7)
    encoder = rows.detach().flip(-1)
    values = penalties(name, rows, rate, on.mT @ on / 40, margins, anchored, norms, encoder)
    (gradient,) = torch.autograd.grad(values.sum(), rows)
    for i, (one, _, codes) in enumerate(cases):
        one.requires_grad_()
        value = real(one, codes)
        torch.testing.assert_close(values.flatten()[i], value)
        assert value > 0
        torch.testing.assert_close(gradient.flatten(0, 1)[i], torch.autograd.grad(value, one)[0])
