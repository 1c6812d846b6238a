"""The loss of one batch and its gradients for all weights, written out by hand for sparse codes.

With z the code, x_hat = z W_dec + b_dec, B rows and n nested prefixes of the dictionary (n = 1 but for Matryoshka),

    loss = weighted mean over prefixes of |x - x_hat|^2 / B                       all architectures
           + sparsity * sum z / B                                                 relu: L1, decoder rows have norm 1
           + sparsity * (number of z > 0) / B                                     jumprelu: L0

The encoder product only chose the entries (sae_lm.training.selection); their pre-activations are computed again here in
the weights' precision. Nothing has the shape [batch, d_sae]: torch's own autograd would go through dense products
of that size. The gradient of b_dec through the encoder's input is (sum of d pre over the batch) @ W_enc.T, no
product over the batch. Dense autograd is the plain twin (tests/support/reference.py).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lm.sae.sparse import SparseCode

FEW = 0.35
"""Share of latents up to which it pays to handle them alone: they are copied out of the weights and back. measured at
8192 x 512 on two cores: an update of all rows takes 7.3 ms, of half of them 8.2, of a quarter 4.4."""


class Weights(NamedTuple):
    """One SAE, or the gradient for one. The encoder is kept latent by latent: its rows are the columns of W_enc."""

    encoder: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]
    log_threshold: Float[Tensor, " d_sae"] | None = None
    """jumprelu only"""


class BatchResult(NamedTuple):
    """What one batch gave."""

    values: Float[Tensor, " entries"]
    """the code's activations, >= 0"""
    fires: Bool[Tensor, " entries"]
    residual: Float[Tensor, "batch d_in"]
    """x - x_hat, of the whole dictionary"""
    fvu: Float[Tensor, ""]
    """squared error per row, of the whole dictionary"""
    loss: Float[Tensor, ""]
    gradient: Weights
    rows: Int[Tensor, " n"] | None = None
    """the latents that the gradients of encoder and W_dec are of, where they are not of all: the others' are 0"""


@torch.no_grad()
def batch_result(
    centred: Float[Tensor, "batch d_in"],
    code: SparseCode,
    weights: Weights,
    sparsity: Float[Tensor, ""] | None = None,
    bandwidth: float = 0.0,
    prefix_weights: Float[Tensor, " slices"] | None = None,
    pull: Callable[[Tensor], Tensor] | None = None,
    only_rows: bool = False,
    whitened: Float[Tensor, "batch d_in"] | None = None,
) -> BatchResult:
    """Loss and gradient for rows less b_dec and the entries of their code.

    sparsity: coefficient of L1 or, where the weights have a threshold, of L0.
    bandwidth: width of the window around the threshold in which the straight-through estimators of JumpReLU
        (Rajamanoharan et al. 2024, 2407.14435, equations 11 and 12) are not 0; the code must hold what is in it.
    prefix_weights: of the nested prefixes' errors, with sum 1; None: all alike.
    pull: what is added to the gradient for the code's values, given these. The loss is without what it is of.
    only_rows: give the gradients of encoder and W_dec for the latents that have an entry alone, if these are few.
    whitened: the rows that stand for ``centred`` in the encoder's gradient (sae_lm.training.whitening).
    """
    batch = len(centred)
    pre = code.products(weights.encoder, centred).add_(weights.b_enc[code.latent])
    threshold = None if weights.log_threshold is None else weights.log_threshold.exp()
    fires = pre > (0 if threshold is None else threshold[code.latent])
    values = torch.where(fires, pre, 0)
    residual, upstream, loss = _errors(centred, code, values, weights.W_dec, prefix_weights)
    bags = upstream.flatten(0, 1)
    grad_values = code.products(weights.W_dec, bags)
    if pull is not None:
        grad_values += pull(values)
    grad_pre = torch.where(fires, grad_values, 0)
    grad_log_threshold = None
    if threshold is not None and sparsity is not None:
        near = (pre - threshold[code.latent]).abs_() < bandwidth / 2
        jump = (threshold[code.latent] * grad_values + sparsity / batch) / -bandwidth
        grad_log_threshold = code.sums(torch.where(near, jump, 0)) * threshold
        loss = loss + sparsity * fires.sum() / batch
    elif sparsity is not None:
        grad_pre = torch.where(fires, grad_pre + sparsity / batch, 0)
        loss = loss + sparsity * values.sum() / batch
    grad_b_enc = code.sums(grad_pre)
    rows = code.entered() if only_rows else None
    if rows is not None and len(rows) > FEW * code.d_sae:
        rows = None
    gradient = Weights(
        encoder=code.transposed_product(grad_pre, centred if whitened is None else whitened, rows),
        b_enc=grad_b_enc,
        W_dec=code.transposed_product(values, bags, rows),
        b_dec=upstream[:, 0].sum(0) - weights.encoder.T @ grad_b_enc,
        log_threshold=grad_log_threshold,
    )
    return BatchResult(values, fires, residual, _square_sum(residual) / batch, loss, gradient, rows)


def _errors(
    centred: Tensor, code: SparseCode, values: Tensor, W_dec: Tensor, prefix_weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The residual of the whole dictionary, the loss' gradient for each slice's sum [batch, slices, d_in], the loss."""
    batch, slices = len(centred), code.slices
    residuals = code.decode(values, W_dec)
    for i in range(1, slices):  # prefix i is the sum of slices 0 to i
        residuals[:, i] += residuals[:, i - 1]
    torch.sub(centred[:, None], residuals, out=residuals)
    residual = residuals[:, -1].clone()
    if prefix_weights is None:
        loss = _square_sum(residuals) / (batch * slices)
        upstream = residuals.mul_(-2 / (batch * slices))
    else:
        loss = torch.linalg.vector_norm(residuals, dim=2).square_().sum(0).dot(prefix_weights) / batch
        upstream = residuals.mul_(prefix_weights[:, None] * (-2 / batch))
    for i in range(slices - 1, 0, -1):  # so slice i contributes to prefixes i to the last
        upstream[:, i - 1] += upstream[:, i]
    return residual, upstream, loss


def _square_sum(rows: Tensor) -> Tensor:
    flat = rows.flatten()
    return flat.dot(flat)  # without a second tensor of this size
