"""sae_lm.training.whitening: the encoder's gradient is taken with rows that vary alike in all directions."""

import pytest
import torch
from reference import dense_loss
from small_trainings import ARCHITECTURES, batches, made, recipe, sparse_batches

from sae_lm.data.store import open_store
from sae_lm.penalties.arms import parse_arm
from sae_lm.training.dead_latents import auxk, dead_sae
from sae_lm.training.objective import batch_result
from sae_lm.training.trainer import ArmTraining
from sae_lm.training.whitening import SHARDS, SHRINKAGE, TOGETHER, _stretches, inverse_root, whitening_matrix


def uneven_rows(n, d, seed=0):
    """Rows that vary 30 times as far in one direction as in another, and no direction is an axis."""
    draw = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=draw)).Q
    return torch.randn(n, d, dtype=torch.float64, generator=draw) * torch.logspace(-0.75, 0.75, d) @ turn + 3.0


def covariance(rows):
    centred = rows - rows.mean(0)
    return centred.T @ centred


def test_whitened_rows_vary_alike_in_all_directions_and_as_much_as_before():
    rows = uneven_rows(4096, 12)
    P = inverse_root(covariance(rows), len(rows)).double()
    torch.testing.assert_close(P, P.T)
    before = torch.linalg.eigvalsh(covariance(rows)) / len(rows)
    after = torch.linalg.eigvalsh(covariance(rows / before.mean().sqrt() @ P)) / len(rows)
    relative = before / before.mean()
    torch.testing.assert_close(after, (relative / (relative + SHRINKAGE)).sort().values, atol=0.01, rtol=0.01)


def test_directions_of_which_rows_say_nothing_are_hardly_turned_up():
    few = uneven_rows(6, 12)  # seven directions without any variance
    gains = torch.linalg.eigvalsh(inverse_root(covariance(few), len(few)).double())
    assert gains.isfinite().all() and gains.max() < 1.0
    flat = uneven_rows(4096, 12)
    flat[:, 0] = 1.0  # and with many rows by no more than a root of the least that is added
    gains = torch.linalg.eigvalsh(inverse_root(covariance(flat), len(flat)).double())
    assert gains.isfinite().all() and gains.max() < 1.01 * SHRINKAGE**-0.5


def test_rows_that_do_not_vary_at_all_turn_no_direction_up():
    gains = torch.linalg.eigvalsh(inverse_root(torch.zeros(4, 4), 100).double())
    torch.testing.assert_close(gains, torch.ones(4, dtype=torch.float64), atol=0.05, rtol=0)


def test_the_matrix_is_the_same_to_the_bit_with_any_number_of_threads():
    rows, threads = uneven_rows(3000, 64), torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(inverse_root(covariance(rows), len(rows)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_of_a_small_store_all_training_rows_are_taken_and_none_that_is_held_out(tiny_store):
    store = open_store(tiny_store)
    hook, stop = store.hook("1"), len(store) - 37
    rows = store.rows(hook, 0, stop).double()
    assert torch.equal(
        whitening_matrix(store, hook, stop, store.moments(hook, stop).mean), inverse_root(covariance(rows), stop)
    )


def test_of_a_large_store_stretches_of_few_shards_all_over_it_are_taken():
    shard = 500_001  # no multiple of a stretch
    first_row = [shard * i for i in range(101)]
    stop = 99 * shard + 7
    found = _stretches(first_row, stop, 32_768)
    assert len(found) == 32_768 // TOGETHER and found == sorted(set(found))
    assert found == _stretches(first_row, stop, 32_768)
    shards = {first // shard for first, _ in found}
    assert SHARDS <= len(shards) < 2 * SHARDS and min(shards) == 0 and max(shards) > 85
    assert all(first // shard == (last - 1) // shard and first < last <= stop for first, last in found)


def test_of_few_rows_each_is_taken_once():
    found = _stretches([0, 100, 130, 1000], 500, 32_768)
    assert [row for first, last in found for row in range(first, last)] == list(range(500))
    small_shards = _stretches([10 * i for i in range(1001)], 10_000, 5000)
    assert sum(last - first for first, last in small_shards) == 5000


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_only_the_encoders_gradient_is_turned_and_by_the_matrix(arch):
    plain = made(h=recipe(arch=arch, matmul="float64"))
    turned = made(h=recipe(arch=arch, matmul="float64"))
    turned.whitening = P = inverse_root(covariance(uneven_rows(500, 8)), 500).double()
    seen = []
    for run in (plain, turned):
        run.optimizer.update = lambda gradient, *_: seen.append(gradient)
        run.step(batches(1)[0], 0)
    for name, before, after in zip(seen[0]._fields, *seen, strict=True):
        if name == "encoder":
            torch.testing.assert_close(after, (before.double() @ P).float(), atol=1e-6, rtol=1e-4)
            assert not torch.allclose(after, before, rtol=0.1)
        elif before is not None:
            assert torch.equal(after, before)


def test_it_is_the_dense_gradient_times_the_matrix_at_some_rows_too():
    run = made(h=recipe(matmul="float64"))
    w = type(run.weights)(*(one if one is None else one.detach().double() for one in run.weights))
    x = batches(1)[0].double()
    P = inverse_root(covariance(uneven_rows(500, 8)), 500).double()
    code = run._code(x.float(), 0)
    leaves = [one.clone().requires_grad_() for one in w[:4]]
    loss, _ = dense_loss("topk", x, leaves[0].T, *leaves[1:], k=3)
    (encoder,) = torch.autograd.grad(loss, leaves[:1])
    for only_rows in (False, True):
        got = batch_result(x - w.b_dec, code, w, only_rows=only_rows, whitened=(x - w.b_dec) @ P)
        which = slice(None) if got.rows is None else got.rows
        torch.testing.assert_close(got.gradient.encoder, (encoder @ P)[which])


def test_dead_latents_learn_from_whitened_rows_as_others_do():
    run, dead = made(), torch.tensor([2, 5, 11])
    w = type(run.weights)(*(one if one is None else one.detach().double() for one in run.weights))
    x, P = batches(1)[0].double(), inverse_root(covariance(uneven_rows(500, 8)), 500).double()
    few = dead_sae(w, dead, torch.float64, 0.0)
    loss, plain = auxk(0.5 * x, x, few, 2)
    again, turned = auxk(0.5 * x, x, few, 2, whitened=x @ P)
    assert (
        torch.equal(loss, again) and torch.equal(plain.W_dec, turned.W_dec) and torch.equal(plain.b_enc, turned.b_enc)
    )
    torch.testing.assert_close(turned.encoder, plain.encoder @ P)


def test_a_frozen_encoder_pays_nothing_for_it():
    P = torch.eye(8, dtype=torch.bfloat16)
    for arm, held in (("none@encoder=frozen", False), ("none", True)):
        run = ArmTraining(parse_arm(arm), 0, recipe(), torch.zeros(8), "cpu", whitening=P)
        assert (run.whitening is not None) == held


def test_rows_that_vary_unevenly_are_learned_better_with_it():
    draw = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=draw)).Q
    data = [x @ turn * torch.logspace(-0.7, 0.7, 16) @ turn.T for x in sparse_batches(200, rows=64, d_in=16)]
    rows = torch.cat(data)
    scale = (rows - rows.mean(0)).square().sum(1).mean().sqrt()
    fvu = {}
    for whitening in (None, inverse_root(covariance(rows.double()), len(rows))):
        run = made(h=recipe(steps=200), d_in=16)
        run.whitening = whitening if whitening is None else whitening.float()
        errors = []
        for step, x in enumerate(data):
            run.step(x / scale, step)
            errors.append(float(run.parts["fvu"]))
        fvu[whitening is None] = sum(errors[-20:]) / 20
    assert fvu[False] < 0.95 * fvu[True]
