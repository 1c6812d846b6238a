"""Labels, near misses, neighbours, matches, owners of concepts and promoted tokens, beside plain loops and by hand."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hand_made import HOOK, WORDS, random_contexts, random_sae, write_store

from sae_lm.data.store import Store
from sae_lm.errors import ModelError
from sae_lm.interp.promoted_tokens import promoted_tokens
from sae_lm.metrics import cofiring as cofiring_module
from sae_lm.metrics import latent_survey
from sae_lm.metrics.cofiring import LEAST_SHARED, cofiring, product_blocks, sample_rows
from sae_lm.metrics.concept_owners import BROUGHT, Direction, concept_bars, concept_directions
from sae_lm.metrics.latent_labels import FEW, TOKEN, WORD, best_rules, near_misses, read_rules, rows_with
from sae_lm.metrics.latent_matches import match_latents
from sae_lm.metrics.latent_statistics import latent_statistics, row_priority
from sae_lm.metrics.latent_survey import Survey, surroundings, survey
from sae_lm.metrics.stored_codes import StoredCodes, store_codes, write_part
from sae_lm.sae.model import SAE

D_SAE = 12


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_store(tmp_path / "store", random_contexts(40, 9, 0), per_shard=7, scale=0.01)


def two(store: Store, folder: Path) -> tuple[list[SAE], list[StoredCodes]]:
    saes = [random_sae(len(WORDS), D_SAE, 3, 1), random_sae(len(WORDS), D_SAE + 3, 4, 2)]
    return saes, [store_codes(store, HOOK, sae, 0, len(store), folder) for sae in saes]


def dense(codes: StoredCodes) -> np.ndarray:
    return np.concatenate([part.matrix(codes.d_sae).toarray() for part in codes.parts()])


def phi(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if len({*a}) > 1 and len({*b}) > 1 else -1.0


def test_a_label_is_the_rule_that_goes_best_with_the_firing(store: Store, tmp_path: Path) -> None:
    _, (codes, _) = two(store, tmp_path)
    columns = store.tokens()
    token = columns["token_id"].numpy()
    rules = read_rules(store, 0)
    made = latent_statistics(
        codes, D_SAE, 0, token, columns["context"].numpy(), len(WORDS), rules.places, 3
    )  # fmt: skip
    labels, z = best_rules(made, rules), dense(codes) > 0
    every = [(TOKEN, t) for t in range(len(WORDS))] + [(WORD, w) for w in range(len(rules.words))]
    every += [(2, c) for c in range(len(rules.concepts))] + [(3, p) for p in range(len(rules.place_names))]
    for latent in range(D_SAE):
        fires = z[:, latent]
        scores = [phi(fires, rows_with(rules, token, *rule)) for rule in every]
        if fires.sum() < FEW or max(scores) <= 0:
            assert labels.kind[latent] == -1
            continue
        has = rows_with(rules, token, int(labels.kind[latent]), int(labels.which[latent]))
        assert math.isclose(labels.phi[latent], max(scores), abs_tol=1e-9)
        assert math.isclose(labels.precision[latent], has[fires].mean())
        assert math.isclose(labels.recall[latent], fires[has].mean())
        simplest = next(kind for (kind, _), score in zip(every, scores, strict=True) if score > max(scores) - 1e-9)
        assert labels.kind[latent] == simplest
    assert {TOKEN} <= set(labels.kind.tolist())


def test_rules_of_places_are_the_same_whatever_is_read_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_rules(store, 5)
    monkeypatch.setattr("sae_lm.metrics.latent_labels.PLACE_ROWS", 20)
    parts = read_rules(store, 5)
    assert whole.place_names == parts.place_names and whole.places.shape[0] == len(store) - 5
    assert np.array_equal(whole.places, parts.places) and whole.places.any()


def test_near_misses_are_rows_with_the_rule_on_which_the_latent_is_silent(store: Store, tmp_path: Path) -> None:
    sae, columns = random_sae(len(WORDS), D_SAE, 3, 1), store.tokens()
    token = columns["token_id"].numpy()
    random = np.random.default_rng(0)
    likely = np.where(token[:, None] == np.arange(D_SAE) % len(WORDS), 0.7, 0.1)
    codes = _codes_of(
        (random.random((len(store), D_SAE)) < likely) * random.random((len(store), D_SAE)), tmp_path / "c"
    )
    rules = read_rules(store, 0)
    made = latent_statistics(codes, D_SAE, 0, token, columns["context"].numpy(), len(WORDS), rules.places, 3)
    labels, z, W = best_rules(made, rules), dense(codes), sae.W_dec.numpy()
    found = near_misses(codes, made, labels, rules, token, sae.W_dec, range(D_SAE), 4)
    priority, compared = row_priority(np.arange(len(store))), 0
    for latent in np.flatnonzero(labels.kind >= 0):
        has = rows_with(rules, token, int(labels.kind[latent]), int(labels.which[latent]))
        silent = sorted(np.flatnonzero(has & (z[:, latent] == 0)), key=lambda row: priority[row])[:4]
        assert found.row[latent][found.row[latent] >= 0].tolist() == silent
        unit = W[latent] / np.linalg.norm(W[latent])
        usual = made.total[latent] / made.fires[latent] * np.linalg.norm(W[latent])
        for column, row in enumerate(silent):
            written = z[row] * (W @ unit)
            if written.max() > 0:
                assert found.instead[latent, column] == written.argmax() != latent
                assert math.isclose(found.share[latent, column], written.max() / usual, rel_tol=1e-4)
                compared += 1
            else:
                assert found.instead[latent, column] == -1
    assert compared


@pytest.mark.parametrize("block", [10**6, 30])
def test_cofiring_agrees_with_counting_row_by_row(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(cofiring_module, "BLOCK_VALUES", block)
    _, (codes, _) = two(store, tmp_path)
    fires = dense(codes) > 0
    made = cofiring(codes, 4)
    assert made.rows == len(store)
    for i in range(D_SAE):
        pairs = []
        for j in range(D_SAE):
            both = int((fires[:, i] & fires[:, j]).sum())
            if j != i and both >= LEAST_SHARED and phi(fires[:, i], fires[:, j]) > 0:
                pairs.append(
                    (-round(phi(fires[:, i], fires[:, j]), 5), j, both / fires[:, i].sum(), both / fires[:, j].sum())
                )
        for column, (_, j, given, back) in enumerate(sorted(pairs)[:4]):
            assert made.latent[i, column] == j
            assert np.allclose((made.given_this[i, column], made.given_other[i, column]), (given, back))
        assert (made.latent[i, len(pairs[:4]) :] == -1).all()


def test_above_the_budget_cofiring_is_counted_on_the_rows_drawn(store: Store, tmp_path: Path) -> None:
    _, codes = two(store, tmp_path)
    sample = sample_rows(codes[0], codes[1], pairs=len(store) * 6)
    drawn = row_priority(np.arange(len(store))) < sample.limit
    assert sample.rows == drawn.sum() and 0.25 * len(store) < sample.rows < 0.75 * len(store)
    left, right = (dense(of)[drawn] for of in codes)
    (_, sums), *rest = product_blocks(codes[0], codes[1], sample, activations=True)
    assert not rest and np.allclose(sums, left.T @ right, rtol=1e-4)
    assert cofiring(codes[0], 2, sample).rows == sample.rows


def test_latents_that_always_fire_or_never_change_are_no_neighbours_and_correlate_with_none(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    z = draw.random((20_011, 6)) * (draw.random((20_011, 6)) < 0.5)
    z[:, :2] = 0.5 + draw.random((len(z), 2))
    z[5, 1] = 0  # all rows but one
    made = cofiring(_codes_of(z, tmp_path / "z"), 3)
    assert (made.latent[0] == -1).all() and 0 not in made.latent and made.phi.max() < 1
    z[:, 2], z[:, 3] = 7.3, 10 + 1e-3 * draw.random(len(z))
    codes, cosine = _codes_of(z, tmp_path / "constant"), torch.eye(6)
    found = match_latents(codes, codes, cosine, cosine).of_left
    assert found.latent.tolist() == [0, 1, 2, 3, 4, 5]
    assert np.allclose(found.correlation, [1, 1, 0, 1, 1, 1], atol=1e-6)
    quiet = _codes_of(z * 1e-9, tmp_path / "quiet")
    assert np.allclose(match_latents(quiet, quiet, cosine, cosine).of_left.correlation, found.correlation, atol=1e-6)


def test_matches_have_the_highest_mean_of_cosine_and_correlation(store: Store, tmp_path: Path) -> None:
    saes, codes = two(store, tmp_path)
    made = match_latents(codes[0], codes[1], saes[0].W_dec, saes[1].W_dec)
    a, b = (sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True) for sae in saes)
    cosine, z = (a @ b.T).numpy(), [dense(of) for of in codes]
    correlation = np.zeros_like(cosine)
    for i in range(D_SAE):
        for j in range(D_SAE + 3):
            if z[0][:, i].any() and z[1][:, j].any():
                correlation[i, j] = np.corrcoef(z[0][:, i], z[1][:, j])[0, 1]
    score = (cosine + correlation) / 2
    assert made.of_left.latent.tolist() == score.argmax(1).tolist()
    assert made.of_right.latent.tolist() == score.argmax(0).tolist()
    for i, j in enumerate(score.argmax(1)):
        assert math.isclose(made.of_left.cosine[i], cosine[i, j], abs_tol=1e-5)
        if z[0][:, i].any() and z[1][:, j].any():
            assert math.isclose(made.of_left.correlation[i], correlation[i, j], abs_tol=1e-4)
        else:
            assert math.isnan(made.of_left.correlation[i])


def permuted(sae: SAE, order: list[int]) -> SAE:
    weights = {"W_enc": sae.W_enc[:, order], "b_enc": sae.b_enc[order], "W_dec": sae.W_dec[order], "b_dec": sae.b_dec}
    return SAE(sae.config, weights)


def test_an_sae_beside_itself_in_another_order_is_kept_whole(store: Store, tmp_path: Path) -> None:
    sae, order = random_sae(len(WORDS), D_SAE, 3, 1), [5, 3, 0, 1, 2, 4, 11, 10, 9, 8, 7, 6]
    saes = [sae, permuted(sae, order)]
    codes = [store_codes(store, HOOK, of, 0, len(store), tmp_path) for of in saes]
    made = match_latents(codes[0], codes[1], saes[0].W_dec, saes[1].W_dec)
    fires = (dense(codes[1]) > 0).any(0)
    assert made.of_right.latent.tolist() == order
    assert [made.of_right.status[i] for i in np.flatnonzero(fires)] == ["kept"] * int(fires.sum())
    assert [made.of_right.status[i] for i in np.flatnonzero(~fires)] == ["silent"] * int((~fires).sum())


def test_what_a_latent_does_around_a_row_is_what_it_does_there(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = some_survey(store, tmp_path)
    codes, count = found.saes[0].codes, found.saes[0].statistics.fires
    z, start = dense(codes), found.start
    latent = np.array([3, 0, 3, 7, 3, 11, 0])
    row = start + np.array([0, 5, 40, 41, 199, len(found.token_id) - 1, 5])
    for entries in (10**6, 1):
        made = surroundings(found, codes, count, latent, row, 4, 2, entries)
        for i in range(len(latent)):
            here = row[i] - start
            expected = []
            for r in range(len(z)):
                away = int(found.position[r] - found.position[here])
                if found.context[r] == found.context[here] and -4 <= away <= 2 and z[r, latent[i]] > 0:
                    expected.append((away, z[r, latent[i]]))
            some = slice(made.indptr[i], made.indptr[i + 1])
            assert made.offset[some].tolist() == [away for away, _ in expected]
            assert np.array_equal(made.value[some], np.array([value for _, value in expected], np.float32))


def some_survey(store: Store, folder: Path, seeds: tuple[int, ...] = (1, 2)) -> Survey:
    named = [(f"s{seed}", random_sae(len(WORDS), D_SAE, 3, seed)) for seed in seeds]
    return survey(store, HOOK, named, tokens=300, contexts=4, folder=folder)


def test_a_survey_is_of_the_last_rows_and_reads_codes_a_second_time(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_survey, "CONCEPT_ROWS", 10)
    found = some_survey(store, tmp_path)
    assert found.start == len(store) - 300 and len(found.token_id) == 300
    assert found.matches is not None and len(found.saes) == 2 and found.saes[0].promoted is None
    monkeypatch.setattr("sae_lm.metrics.stored_codes._encode", lambda *of: pytest.fail("encoded again"))
    again = some_survey(store, tmp_path)
    assert np.array_equal(found.saes[1].cofiring.latent, again.saes[1].cofiring.latent)
    assert [(c.name, c.bars) for c in found.concepts] == [(c.name, c.bars) for c in again.concepts]
    names = [c.name for c in found.concepts] + found.unread
    assert sorted(names) == sorted([*found.rules.concepts, *found.rules.place_names])


# --- owners of concepts


class Scene:
    """Rows of 40 tokens; tokens below 20 have the concept. ``latents``: (tokens it fires on, what it writes along 1)."""

    def __init__(self, folder: Path, latents: list[tuple[list[int], float]]) -> None:
        self.token = np.tile(np.arange(40), 10)
        self.has = (self.token < 20)[:, None]
        z = np.stack([np.isin(self.token, tokens) for tokens, _ in latents], 1).astype(np.float32)
        self.W_dec = torch.tensor([[along, 1.0] for _, along in latents])
        self.direction = Direction(torch.tensor([1.0, 0.0]), gap=1.0, correlation=1.0)
        self.codes = _codes_of(z, folder)

    def bar(self):
        return concept_bars(self.codes, self.W_dec, [self.direction], self.has, self.token)[0]


def _codes_of(z: np.ndarray, folder: Path) -> StoredCodes:
    folder.mkdir(exist_ok=True)
    row, latent = z.nonzero()
    count = np.bincount(row, minlength=len(z)).astype(np.int32)
    arrays = {"count": count, "latent": latent.astype(np.uint16), "value": z[row, latent].astype(np.float32)}
    write_part(folder / "00000.safetensors", arrays)
    return StoredCodes(folder, z.shape[1], 0, len(z))


CONCEPT, REST = list(range(20)), list(range(20, 40))


@pytest.mark.parametrize(
    ("latents", "verdict"),
    [
        ([(CONCEPT, 1.0), (REST, 1.0)], "clean"),
        ([(CONCEPT[:10], 1.0), (CONCEPT[10:], 1.0)], "split"),
        ([(CONCEPT[4:], 1.0), *(([t], 1.0) for t in CONCEPT[:4])], "absorbed"),
        ([(CONCEPT, 0.4), *(([t], 1.0) for t in CONCEPT[:17])], "by token"),
        ([(CONCEPT[:6], 1.0)], "missing"),
        ([(CONCEPT, BROUGHT - 0.01)], "missing"),
    ],
)
def test_clean_split_absorbed_and_missing_concepts_are_told_apart(
    tmp_path: Path, latents: list[tuple[list[int], float]], verdict: str
) -> None:
    bar = Scene(tmp_path, latents).bar()
    assert bar.verdict == verdict
    assert bar.rows == 200 == bar.none + bar.rest + sum(segment.rows for segment in bar.segments)


def test_a_bar_names_who_fires_instead_and_on_what(tmp_path: Path) -> None:
    bar = Scene(tmp_path, [(CONCEPT[4:], 1.0), ([0, 1], 1.0), ([2], 1.0), (CONCEPT[5:6], 1.5)]).bar()
    assert bar.main == 0 and bar.none == 10 and bar.main_recall == 0.8
    by_latent = {segment.latent: segment for segment in bar.segments}
    assert [by_latent[i].kind for i in (0, 1, 2, 3)] == ["main", "broad", "instead", "beside"]
    assert by_latent[2][1:5] == (10, 2, 1.0, 1.0) and by_latent[1].main_silent == 1.0
    assert by_latent[3].main_silent == 0.0 and bar.segments[0].kind == "main"


def test_a_row_belongs_to_the_latent_that_brings_most_in_a_plain_loop(store: Store, tmp_path: Path) -> None:
    (sae, _), (codes, _) = two(store, tmp_path)
    token = store.tokens()["token_id"].numpy()
    has = np.stack([token == 1, np.isin(token, [2, 3])], 1)
    directions = concept_directions(store.rows(HOOK).float(), torch.from_numpy(has))
    z, W = dense(codes), sae.W_dec
    for c, bar in enumerate(concept_bars(codes, W, directions, has, token)):
        along = (W @ directions[c].weight).numpy()
        owners: dict[int, int] = {}
        for row in np.flatnonzero(has[:, c]):
            brought = z[row] * along
            owner = int(brought.argmax()) if brought.max() >= BROUGHT * directions[c].gap else -1
            owners[owner] = owners.get(owner, 0) + 1
        assert bar.none == owners.pop(-1, 0)
        assert {segment.latent: segment.rows for segment in bar.segments} == owners


def test_a_concepts_line_is_judged_by_rows_that_it_was_not_fitted_to() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 400, generator=generator)
    labels = torch.stack([x[:, 0] + x[:, 3] > 1, torch.rand(4000, generator=generator) > 0.5], 1)
    good, noise = concept_directions(x, labels)
    read = (x[2000:] @ good.weight).numpy()
    there = labels[2000:, 0].numpy()
    assert good.correlation == pytest.approx(np.corrcoef(read, there)[0, 1])
    assert good.gap == pytest.approx(read[there].mean() - read[~there].mean())
    assert good.correlation > 0.5 and noise.correlation < 0.1  # of its own rows .4
    assert set(good.weight.abs().topk(2).indices.tolist()) == {0, 3}


@pytest.mark.parametrize("rows", [1, 3])
def test_where_rows_do_not_vary_no_line_reads_a_concept(rows: int) -> None:
    directions = concept_directions(torch.ones(rows, 6), torch.arange(rows)[:, None] == torch.tensor([0, 9]))
    assert [direction.correlation for direction in directions] == [0, 0]
    assert not any(direction.weight.any() for direction in directions)


# --- promoted tokens


def test_promoted_tokens_are_those_of_the_product_with_the_unembedding() -> None:
    generator = torch.Generator().manual_seed(0)
    W_U, w, W_dec = (torch.randn(*size, generator=generator) for size in ((5, 30), (5,), (7, 5)))
    model = SimpleNamespace(W_U=W_U, ln_final=lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w)
    made = promoted_tokens(model, W_dec, 4)
    for latent in range(7):
        logits = [sum(float(W_dec[latent, d] * w[d] * W_U[d, t]) for d in range(5)) for t in range(30)]
        centred = [logit - sum(logits) / 30 for logit in logits]
        order = sorted(range(30), key=lambda t: -centred[t])
        assert made.promoted[latent].tolist() == order[:4] and made.suppressed[latent].tolist() == order[::-1][:4]
        assert np.allclose(made.promoted_logit[latent], [centred[t] for t in order[:4]], atol=1e-4)
    with pytest.raises(ModelError, match=r"width 4.*residual stream has 5"):
        promoted_tokens(model, W_dec[:, :4], 4)
