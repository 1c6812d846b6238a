"""tests/benchmarks/synthetic_benchmark.py on a tiny world, beside SAELens' own sampler and orthogonalisation."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.transformer_lens_3


@pytest.fixture(scope="module")
def world_module():
    pytest.importorskip("sae_lens")
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    import synthetic_world

    return synthetic_world


@pytest.fixture(scope="module")
def model(world_module):
    return world_module.build(features=192, d_in=24, roots=2, steps=0)


def test_orthogonalisation_by_the_gram_matrix_is_saelens_own(world_module, model):
    from sae_lens.synthetic.feature_dictionary import orthogonalize_embeddings

    vectors = model.feature_dict.feature_vectors.detach()
    ours = world_module.make_incoherent(vectors, steps=10)
    theirs = orthogonalize_embeddings(vectors, num_steps=10, lr=world_module.LR, chunk_size=50)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert not torch.allclose(ours, vectors, atol=1e-4)


def test_features_are_on_as_often_together_and_as_large_as_saelens_draws_them(world_module, model):
    rows = 64 * 150
    torch.manual_seed(0)
    theirs = model.activation_generator.sample(rows).numpy()
    sampler = world_module.Sampler(model, seed=0)
    ours = np.zeros((rows, 192), np.float32)
    for first in range(0, rows, 64):
        on = sampler.features_on(64)
        ours[first + on.row, on.feature] = on.size
    for a, b in (
        (ours > 0, theirs > 0),
        ((ours[:, :40] > 0).T @ (ours[:, :40] > 0), (theirs[:, :40] > 0).T @ (theirs[:, :40] > 0)),
    ):
        counts = (a.sum(0), b.sum(0)) if len(a) == rows else (np.triu(a, 1), np.triu(b, 1))
        counts = tuple(count.astype(float) for count in counts)
        distance = (counts[0] - counts[1]) / np.sqrt(counts[0] + counts[1] + 1)
        assert np.abs(distance).max() < 5 and distance.std() < 1.3
    assert ours.sum() / (ours > 0).sum() == pytest.approx(theirs.sum() / (theirs > 0).sum(), rel=0.01)
    tree = world_module.tree_of(model)
    children = np.flatnonzero(tree.parent >= 0)
    assert len(children) == 2 * (4 + 16 + 64)
    for drawn in (ours, theirs):
        assert ((drawn[:, children] == 0) | (drawn[:, tree.parent[children]] > 0)).all()
        for group in np.unique(tree.group[tree.group >= 0]):
            assert ((drawn[:, tree.group == group] > 0).sum(1) <= 1).all()


def test_rows_are_what_saelens_makes_of_the_features_that_are_on(world_module, model):
    sampler = world_module.Sampler(model, seed=3)
    on = sampler.features_on(20)
    dense = torch.zeros(20, 192)
    dense[torch.from_numpy(on.row), torch.from_numpy(on.feature)] = torch.from_numpy(on.size)
    torch.testing.assert_close(sampler.activations(on, 20), model.feature_dict(dense), atol=1e-4, rtol=1e-4)


def test_the_benchmark_writes_rows_trains_on_them_and_prints_a_table(world_module, tmp_path, capsys):
    from synthetic_benchmark import main

    world = ["--features", "192", "--d-in", "24", "--roots", "2"]
    main(["rows", str(tmp_path), *world, "--rows", "6000"])
    arms = "none@arch=batchtopk,none@arch=matryoshka"
    main(
        ["train", str(tmp_path), "--d-sae", "48", "--k", "3", "--tokens", "6000", "--batch-size", "128", "--arms", arms]
    )
    main(["judge", str(tmp_path), *world, "--rows", "2048"])
    said = capsys.readouterr().out
    heads, *lines = said[said.rindex("  F1") :].splitlines()
    assert {"F1", "MCC", "uniqueness", "L0", "hole", "gap"} <= set(said.split())
    assert any(line.startswith("none@arch=matryoshka") for line in lines), heads
