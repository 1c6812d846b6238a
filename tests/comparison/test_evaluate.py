"""sae_lm.comparison.evaluate: one SAE's figures on rows that all SAEs share."""

import pytest
import torch
from toys import identity_sae, toy_rows

from sae_lm.comparison.evaluate import concept_figures, sae_codes, sae_splits
from sae_lm.comparison.evaluation_set import (
    ConceptSet,
    EvaluationSet,
    find_candidates,
    sample_documents,
    sum_samples,
)
from sae_lm.concepts.probes import f1, fit_probes
from sae_lm.concepts.rows import TEST

pytestmark = pytest.mark.transformer_lens_3


def test_main_latents_are_told_with_the_number_that_all_saes_get_and_not_with_their_own():
    rows, sae = toy_rows([0, 2, 5]), identity_sae(6, b_enc=torch.full((6,), -0.1))
    (probe,) = fit_probes(rows, min_types=50, gate=0.6)
    of_rows = sample_documents(torch.arange(len(rows.x)), 0)
    found = find_candidates(0, rows, [(0, probe)], of_rows)
    evaluation_set = EvaluationSet(
        lambda size: iter([]),
        of_rows,
        sum_samples(lambda size: iter([rows.x]), of_rows),
        [ConceptSet(rows, [0])],
        found,
        0,
    )
    codes = sae_codes(sae, evaluation_set)
    splits = sae_splits(codes, evaluation_set, 6, 0.03)
    for common in (1, 2, 3):
        (figures,), _ = concept_figures(sae, codes, splits, evaluation_set, [common])
        predicted = codes[0].columns(splits[0].ranking[:common]).gt(0).any(1)
        test = rows.subset == TEST
        assert figures["splits"] == 3 and figures["main_f1"] == pytest.approx(f1(predicted[test], rows.labels[test, 0]))
