"""What foreign SAEs compute, written out by formula, and the weights that they compute it with."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

D, M, K = 6, 12, 3
Formula = Callable[[Tensor], tuple[Tensor, Tensor]]


def numbers(seed=0, d=D, m=M):
    """Random weights: W_enc [d, m], b_enc, W_dec [m, d] with rows of uneven norm, b_dec, threshold, and three more."""
    draw = torch.Generator().manual_seed(seed)
    of = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
    return {
        "W_enc": of(d, m),
        "b_enc": of(m) * 0.3,
        "W_dec": of(m, d),
        "b_dec": of(d),
        "threshold": torch.rand(m, generator=draw),
        "r_mag": of(m) * 0.3,
        "b_gate": of(m) * 0.3,
        "b_mag": of(m) * 0.3,
    }


def inputs(d=D, rows=200):
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(9)) * 1.5 + 0.4


def relu(pre):
    return pre.clamp_min(0)


def topk(pre, k=K):
    out = torch.zeros_like(pre)
    for row in range(len(pre)):
        best = sorted(range(pre.shape[1]), key=lambda i: -float(pre[row, i]))[:k]
        out[row, best] = pre[row, best].clamp_min(0)
    return out


def groupmax(pre, k=K):
    out, size = torch.zeros_like(pre), pre.shape[1] // k
    for row in range(len(pre)):
        for block in range(k):
            best = max(range(block * size, (block + 1) * size), key=lambda i: float(pre[row, i]))
            out[row, best] = pre[row, best].clamp_min(0)
    return out


def above(threshold):
    return lambda pre: relu(pre) * (pre > torch.as_tensor(threshold).double())


def plain(n, fires, pre_bias, scale=1.0) -> Formula:
    """The usual formula; scale: what the input is multiplied by and the output divided by."""
    w = {key: value.double() for key, value in n.items()}

    def formula(x):
        x = x.double() * scale
        z = fires((x - w["b_dec"] * pre_bias) @ w["W_enc"] + w["b_enc"])
        return z, (z @ w["W_dec"] + w["b_dec"]) / scale

    return formula


def gated(n) -> Formula:
    w = {key: value.double() for key, value in n.items()}

    def formula(x):
        along = (x.double() - w["b_dec"]) @ w["W_enc"]
        z = (along + w["b_gate"] > 0) * relu(along * w["r_mag"].exp() + w["b_mag"])
        return z, z @ w["W_dec"] + w["b_dec"]

    return formula


def layer_normed(formula, epsilon=1e-5) -> Formula:
    def normed(x):
        x = x.double()
        mean = x.mean(1, keepdim=True)
        std = (x - mean).std(1, keepdim=True)
        z, x_hat = formula((x - mean) / (std + epsilon))
        return z, x_hat * std + mean

    return normed


def norm_rescaled(formula) -> Formula:
    def rescaled(x):
        x = x.double()
        size = x.norm(dim=1, keepdim=True) / math.sqrt(x.shape[1])
        z, x_hat = formula(x / size)
        return z, x_hat * size

    return rescaled


def centred(formula) -> Formula:
    def around_mean(x):
        mean = x.double().mean(1, keepdim=True)
        z, x_hat = formula(x.double() - mean)
        return z, x_hat + mean

    return around_mean


def pick(n, *names):
    return {name: n[name] for name in names}


BASE = ("W_enc", "b_enc", "W_dec", "b_dec")
