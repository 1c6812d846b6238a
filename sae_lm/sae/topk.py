"""batch -> reconstruction and gradients of a TopK SAE, paying for the dense encoder product alone.

With B rows, m latents and k active, the encoder product is the one step of cost B m d. It may run in
bfloat16, since it only selects; the k chosen pre-activations are computed again in float32. Decoding
gathers k rows per token, and backward multiplies sparse [m, B] by dense [B, d] for both weight
gradients (torch's own autograd would go through dense [B, m] products). The gradient of b_dec through
the encoder's input is (sum of d pre over the batch) @ W_enc.T: no product over the batch. Dense autograd over
``SAE.encode`` and ``decode`` is the plain twin (tests/reference.py).
"""

import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor

GATHER_ELEMENTS = 1 << 23
"""Elements of gathered rows held at a time, 32 MiB in float32."""


class TopK(torch.autograd.Function):
    """(x [B, d], W_enc [d, m], b_enc [m], W_dec [m, d], b_dec [d], k, dtype of the product) ->
    x_hat [B, d], z [B, k] >= 0, index of the latents [B, k]. Gradients flow from x_hat alone."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        k: int,
        matmul: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        centred = x - b_dec
        index = select(centred, W_enc, b_enc, k, matmul)
        z = (row_products(W_enc.T, index, centred) + b_enc[index]).relu_()
        x_hat = torch.nn.functional.embedding_bag(index, W_dec, per_sample_weights=z, mode="sum") + b_dec
        ctx.save_for_backward(centred, W_enc, W_dec, z, index)
        ctx.mark_non_differentiable(z, index)
        return x_hat, z, index

    @staticmethod
    def backward(ctx, grad_x_hat: Tensor, *_: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        centred, W_enc, W_dec, z, index = ctx.saved_tensors
        grad_z = row_products(W_dec, index, grad_x_hat).mul_(z > 0)
        by_latent = SparseByLatent(index, len(W_dec))
        grad_W_dec = by_latent.transposed_product(z, grad_x_hat)
        grad_W_enc = by_latent.transposed_product(grad_z, centred).T
        grad_b_enc = by_latent.sums(grad_z)
        grad_b_dec = grad_x_hat.sum(0) - W_enc @ grad_b_enc
        return None, grad_W_enc, grad_b_enc, grad_W_dec, grad_b_dec, None, None


def select(
    centred: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    k: int,
    matmul: torch.dtype,
) -> Int[Tensor, "batch k"]:
    """The latents with the k largest pre-activations."""
    pre = torch.addmm(b_enc.to(matmul), centred.to(matmul), W_enc.to(matmul))
    return pre.topk(k, dim=1, sorted=False).indices


def row_products(
    rows: Float[Tensor, "d_sae d_in"], index: Int[Tensor, "batch k"], vectors: Float[Tensor, "batch d_in"]
) -> Float[Tensor, "batch k"]:
    """out[b, j] = rows[index[b, j]] . vectors[b], a bounded piece of the batch at a time."""
    out = torch.empty(index.shape, dtype=vectors.dtype, device=vectors.device)
    step = max(1, GATHER_ELEMENTS // (index.shape[1] * rows.shape[1]))
    for first in range(0, len(index), step):
        piece = slice(first, first + step)
        torch.bmm(rows[index[piece]], vectors[piece, :, None], out=out[piece, :, None])
    return out


class SparseByLatent:
    """The positions of a [B, k] index ordered by latent: the layout of the transposed code, [d_sae, B] in CSR."""

    def __init__(self, index: Int[Tensor, "batch k"], d_sae: int) -> None:
        self.shape = (d_sae, len(index))
        self.latents, self.order = index.flatten().sort()
        counts = torch.bincount(self.latents, minlength=d_sae)
        self.starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self.tokens = self.order // index.shape[1]

    def transposed_product(
        self, values: Float[Tensor, "batch k"], dense: Float[Tensor, "batch d_in"]
    ) -> Float[Tensor, "d_sae d_in"]:
        """code.T @ dense, for the code with these values at the index."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            code = torch.sparse_csr_tensor(
                self.starts, self.tokens, values.flatten()[self.order], self.shape, check_invariants=False
            )
        return code @ dense

    def sums(self, values: Float[Tensor, "batch k"]) -> Float[Tensor, " d_sae"]:
        """Per latent, the sum of its values over the batch."""
        return values.new_zeros(self.shape[0]).index_add_(0, self.latents, values.flatten()[self.order])


def auxk(
    error: Float[Tensor, "batch d_in"],
    centred: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    dead: Int[Tensor, " n_dead"],
    k: int,
) -> Float[Tensor, ""]:
    """AuxK (Gao et al. 2024, section A.2): let the dead latents explain the error; gradient to encoder and decoder.

    Mean over the batch of ||error - z_dead W_dec||^2 over that of ||error - mean error||^2, where
    z_dead are the k largest pre-activations among dead latents. The error is a constant here.
    """
    pre = centred.detach() @ W_enc[:, dead] + b_enc[dead]
    values, index = pre.topk(min(k, len(dead)), dim=1, sorted=False)
    z = torch.zeros_like(pre).scatter(1, index, values.relu())
    missed = (error - z @ W_dec[dead]).square().sum()
    scale = (error - error.mean(0)).square().sum()
    return (missed / scale.clamp_min(1e-12)).nan_to_num(0.0)
