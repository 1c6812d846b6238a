"""sae_lm.training.objective and sae_lm.sae.sparse: loss and gradients of every architecture against dense autograd."""

import pytest
import torch
from reference import dense_loss

from sae_lm.sae.sparse import SparseCode
from sae_lm.training.objective import Weights, batch_result
from sae_lm.training.selection import above_zero, largest_of_batch, largest_of_rows

BANDWIDTH = 0.5
SPARSITY = 0.3


def weights(arch, d, m, seed=0):
    draw = torch.Generator().manual_seed(seed)
    encoder, W_dec = (torch.randn(m, d, dtype=torch.float64, generator=draw) for _ in range(2))
    b_enc, b_dec = (torch.randn(n, dtype=torch.float64, generator=draw) for n in (m, d))
    log_threshold = torch.randn(m, dtype=torch.float64, generator=draw) * 0.3 if arch == "jumprelu" else None
    return Weights(encoder, b_enc, W_dec / W_dec.norm(dim=1, keepdim=True), b_dec, log_threshold)


def code_of(arch, centred, w, k, widths=None):
    batch, d_sae, matmul = len(centred), len(w.b_enc), w.b_enc.dtype
    if arch == "topk":
        positions = largest_of_rows(centred, w.encoder, w.b_enc, k, matmul)
    elif arch in ("batchtopk", "matryoshka"):
        positions, _ = largest_of_batch(centred, w.encoder, w.b_enc, k * batch, matmul)
    else:
        reach = 0 if w.log_threshold is None else w.log_threshold.exp() - BANDWIDTH / 2
        positions = above_zero(centred, w.encoder, w.b_enc - reach, matmul)
    return SparseCode(positions, batch, d_sae, None if widths is None else torch.tensor(widths))


ARCHITECTURES = ["relu", "topk", "batchtopk", "jumprelu", "matryoshka"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("batch", "d", "m", "k"), [(37, 11, 53, 5), (1, 3, 4, 4), (9, 5, 7, 1)])
def test_loss_code_and_all_gradients_equal_dense_autograd(arch, batch, d, m, k):
    w = weights(arch, d, m)
    widths = (1, 3, m // 2 + 2, m) if arch == "matryoshka" and m > 4 else None
    x = torch.randn(batch, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    code = code_of(arch, x - w.b_dec, w, k, widths)
    sparsity = torch.tensor(SPARSITY, dtype=torch.float64) if arch in ("relu", "jumprelu") else None
    got = batch_result(x - w.b_dec, code, w, sparsity, BANDWIDTH)

    leaves = [None if one is None else one.clone().requires_grad_() for one in w]
    loss, z = dense_loss(
        arch, x, leaves[0].T, *leaves[1:], k=k, widths=widths or (), sparsity=SPARSITY, bandwidth=BANDWIDTH
    )
    torch.testing.assert_close(got.loss, loss.detach())
    rows = torch.arange(batch).repeat_interleave(code.starts.diff())
    dense = torch.zeros(batch, m, dtype=torch.float64)
    dense[rows, code.latent] = got.values
    torch.testing.assert_close(dense, z.detach())
    assert torch.equal(got.fires, got.values > 0)
    residual = x - z.detach() @ w.W_dec - w.b_dec
    torch.testing.assert_close(got.residual, residual)
    torch.testing.assert_close(got.fvu, residual.square().sum(1).mean())
    for name, mine, leaf in zip(Weights._fields, got.gradient, leaves, strict=True):
        assert (mine is None) == (leaf is None)
        if leaf is None:
            continue
        (expected,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        if arch == "relu" and name == "W_dec":  # L1 weighs activations by norms; training takes its pull on norms out
            mine, expected = (g - (g * w.W_dec).sum(1, keepdim=True) * w.W_dec for g in (mine, expected))
        torch.testing.assert_close(mine, expected, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0, 3.0])
def test_weighted_prefixes_have_the_gradients_of_dense_autograd(balance):
    w, widths = weights("matryoshka", 11, 53), (1, 3, 28, 53)
    x = torch.randn(37, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shares = torch.tensor([balance**3, balance**2, balance, 1.0], dtype=torch.float64)
    code = code_of("matryoshka", x - w.b_dec, w, 5, widths)
    got = batch_result(x - w.b_dec, code, w, prefix_weights=shares / shares.sum())
    leaves = [one.clone().requires_grad_() for one in w[:4]]
    loss, z = dense_loss("matryoshka", x, leaves[0].T, *leaves[1:], k=5, widths=widths, balance=balance)
    torch.testing.assert_close(got.loss, loss.detach())
    torch.testing.assert_close(got.fvu, (x - z @ w.W_dec - w.b_dec).square().sum(1).mean().detach())
    expected = torch.autograd.grad(loss, leaves)
    for name, mine, twins in zip(Weights._fields[:4], got.gradient[:4], expected, strict=True):
        torch.testing.assert_close(mine, twins, msg=lambda text, name=name: f"{name}: {text}")


def test_a_latent_selected_below_zero_neither_fires_nor_learns():
    w = weights("topk", 3, 4)._replace(b_enc=torch.full((4,), -100.0, dtype=torch.float64))
    x = torch.ones(2, 3, dtype=torch.float64)
    got = batch_result(x - w.b_dec, code_of("topk", x - w.b_dec, w, 2), w)
    assert not got.values.any() and not got.fires.any()
    assert not got.gradient.encoder.any() and not got.gradient.b_enc.any() and not got.gradient.W_dec.any()
    torch.testing.assert_close(got.residual, x - w.b_dec)


def test_a_batch_in_which_nothing_is_active_has_the_gradient_of_the_mean_alone():
    w = weights("relu", 3, 4)._replace(b_enc=torch.full((4,), -100.0, dtype=torch.float64))
    x = torch.ones(5, 3, dtype=torch.float64)
    got = batch_result(x - w.b_dec, code_of("relu", x - w.b_dec, w, 1), w, torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(got.gradient.b_dec, -2 * (x - w.b_dec).mean(0))
    assert not got.gradient.encoder.any() and not got.gradient.W_dec.any()


def test_a_silent_entry_within_the_bandwidth_moves_its_threshold_and_nothing_else():
    w = Weights(*(torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)) * 2, torch.zeros(2).double())
    x = torch.tensor([[0.8, -3.0]], dtype=torch.float64)  # threshold 1, bandwidth .5: in the window, far from it
    got = batch_result(x, code_of("jumprelu", x, w, 1), w, torch.tensor(0.1, dtype=torch.float64), BANDWIDTH)
    assert not got.fires.any() and not got.gradient.encoder.any()
    # d loss / d value = -2 * .8; threshold * that + sparsity = -1.5; over -bandwidth: 3; times threshold
    torch.testing.assert_close(got.gradient.log_threshold, torch.tensor([3.0, 0.0], dtype=torch.float64))


def test_matryoshka_with_one_prefix_is_batchtopk():
    w = weights("matryoshka", 5, 12)
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    one, plain = (batch_result(x, code_of("matryoshka", x, w, 3, widths), w, None).gradient for widths in ((12,), None))
    assert all(torch.equal(a, b) for a, b in zip(one[:4], plain[:4], strict=True))


def test_selecting_in_bfloat16_still_gives_float32_values():
    w = Weights(*(None if one is None else one.float() for one in weights("topk", 16, 64)))
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(3))
    code = SparseCode(largest_of_rows(x, w.encoder, w.b_enc, 4, torch.bfloat16), 50, 64)
    exact = (x @ w.encoder.T + w.b_enc).gather(1, code.latent.view(50, 4))
    torch.testing.assert_close(batch_result(x, code, w).values.view(50, 4), exact.relu(), atol=1e-5, rtol=1e-5)


def test_positions_beyond_16_bits_of_latents_are_sorted_too():
    latents = torch.tensor([5, 40_000, 65_535, 3, 40_000])
    code = SparseCode(latents + torch.tensor([0, 0, 0, 65_536, 65_536]), 2, 65_536)
    assert code.latent.tolist() == latents.tolist() and code.starts.tolist() == [0, 3, 5]
    sums = code.sums(torch.arange(5.0))
    assert {i: float(sums[i]) for i in sums.nonzero().flatten().tolist()} == {3: 3.0, 40_000: 5.0, 65_535: 2.0}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gradients_of_the_latents_that_have_an_entry_are_the_whole_gradients_rows(arch, monkeypatch):
    monkeypatch.setattr("sae_lm.training.objective.FEW", 1.0)
    w = weights(arch, 6, 40)
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - w.b_dec
    code = code_of(arch, x, w, 2, (10, 40) if arch == "matryoshka" else None)
    whole, few = batch_result(x, code, w), batch_result(x, code, w, only_rows=True)
    assert whole.rows is None and few.rows is not None and 0 < len(few.rows) < 40
    silent = torch.ones(40, dtype=torch.bool)
    silent[few.rows] = False
    for name in ("encoder", "W_dec"):
        of_all = getattr(whole.gradient, name)
        assert torch.equal(getattr(few.gradient, name), of_all[few.rows]) and not of_all[silent].any()
    assert torch.equal(few.gradient.b_enc, whole.gradient.b_enc) and torch.equal(few.loss, whole.loss)


def test_where_many_latents_have_an_entry_the_gradients_are_of_all():
    w = weights("topk", 6, 4)
    x = torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert batch_result(x, code_of("topk", x, w, 3), w, only_rows=True).rows is None
