"""SAEs, codes and rows small enough to check by hand."""

import torch

from sae_lm.concepts.rows import ConceptRows
from sae_lm.metrics.codes import firing_codes
from sae_lm.sae.model import SAE, SaeConfig
from sae_lm.synthetic.worlds import Singles, Trees, forest

TREE = forest(12, Trees(2, 0.4, children=2, child_probability=0.3), Singles(2, 0.2))
"""Two parents of two children each, and two features that stand alone, in 12 dimensions."""


def identity_sae(d, bias=None, **changes):
    """A standard SAE whose latents are the d axes."""
    weights = {"W_enc": torch.eye(d), "b_enc": torch.zeros(d), "W_dec": torch.eye(d), "b_dec": torch.zeros(d)}
    return SAE(SaeConfig(architecture="standard", d_in=d, d_sae=d), {**weights, **changes})


def as_codes(dense):
    strength, latent = dense.topk(max(1, int((dense > 0).sum(1).max())), dim=1)
    return firing_codes(strength, latent, dense.shape[1])


def random_case(n=60, m=14, d=8, share=0.3, seed=0, toward=0.4):
    """Dense activations, their codes, rows, uneven decoder rows that lean to the probe, the probe, token ids."""
    draw = torch.Generator().manual_seed(seed)
    probe = torch.randn(d, generator=draw)
    W_dec = torch.randn(m, d, generator=draw) + toward * probe
    a = torch.rand(n, m, generator=draw) * (torch.rand(n, m, generator=draw) < share)
    x = a @ W_dec + 0.2 * torch.randn(n, d, generator=draw)
    strength, latent = (a * W_dec.norm(dim=1)).topk(int((a > 0).sum(1).max()), dim=1)
    return a, firing_codes(strength, latent, m), x, W_dec, probe, torch.arange(n) % 7


def toy_rows(carriers, n=1200, d=6, seed=0):
    """Rows whose concept 0 holds where any of the carrier axes is on; types are all different."""
    draw = torch.Generator().manual_seed(seed)
    which = torch.randint(0, d, (n,), generator=draw)
    x = torch.nn.functional.one_hot(which, d).float() + 0.01 * torch.randn(n, d, generator=draw)
    labels = torch.isin(which, torch.tensor(carriers))[:, None]
    part = torch.randint(0, 3, (n,), generator=draw)
    return ConceptRows(x, torch.arange(n), labels, part, ["concept"])
