"""Slow plain twins of what the package does fast: loops, dense tensors, float64."""

import torch
from torch import Tensor


def dense_topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, k: int) -> Tensor:
    """Reconstruction through a dense [batch, d_sae] code, differentiable by autograd."""
    pre = (x - b_dec) @ W_enc + b_enc
    values, index = pre.topk(k, dim=1)
    return torch.zeros_like(pre).scatter(1, index, values.relu()) @ W_dec + b_dec


def mean_abs_cos(rows: Tensor) -> Tensor:
    unit = rows / rows.norm(dim=1, keepdim=True)
    pairs = [(unit[i] * unit[j]).sum().abs() for i in range(len(rows)) for j in range(len(rows)) if i != j]
    return torch.stack(pairs).mean()


def ortsae(rows: Tensor) -> Tensor:
    """OrtSAE's term over one chunk."""
    unit = rows / rows.norm(dim=1, keepdim=True)
    nearest = [max((unit[i] * unit[j]).sum() for j in range(len(rows)) if j != i) for i in range(len(rows))]
    return torch.stack([cosine.clamp_min(0) ** 2 for cosine in nearest]).mean()


def dense_absorption(a: Tensor, x: Tensor, W_dec: Tensor, w: Tensor, main: list[int]) -> list[tuple[bool, float]]:
    """SAEBench 0.6.0's full and fractional absorption, one row and one latent at a time.

    a: dense activations [n, d_sae]. With non-unit decoder rows the strength is a * ||d||.
    """
    p = w / w.norm()
    out = []
    for row in range(len(x)):
        whole = float(x[row] @ p)
        projection, cosine = [], []
        for latent in range(len(W_dec)):
            projection.append(float(a[row, latent] * (W_dec[latent] @ p)))
            cosine.append(float(W_dec[latent] @ p / W_dec[latent].norm()))
        silent = sum(float(a[row, latent] * W_dec[latent].norm()) for latent in main) < 1e-8
        top = max(range(len(W_dec)), key=lambda latent: projection[latent])
        full = silent and cosine[top] >= 0.025 and whole > 0 and projection[top] >= 0.4 * whole
        carried = sum(projection[latent] for latent in main)
        others = sorted(
            (projection[i] for i in range(len(W_dec)) if i not in main and cosine[i] >= 0.1 and projection[i] > 0),
            reverse=True,
        )
        absorbed = sum(others[:3])
        if whole <= 0 or carried >= whole or absorbed < 0.4 * whole:
            fraction = 0.0
        elif carried <= 0:
            fraction = 1.0
        else:
            part = min(absorbed, whole - carried)
            fraction = min(1.0, max(0.0, part / (part + carried)))
        out.append((full, fraction))
    return out
