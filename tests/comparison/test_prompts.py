"""sae_lm.comparison.evaluation_set where concepts are taken on prompts: what is refused, and what is drawn anew."""

import pytest
import torch

import sae_lm
from sae_lm.comparison import evaluation_set
from sae_lm.comparison.evaluation_set import _check_prompts, _documents_of, build_evaluation_set
from sae_lm.comparison.runs import Runs
from sae_lm.concepts.rows import ConceptRows
from sae_lm.errors import SettingsError
from sae_lm.penalties.arms import Arm
from sae_lm.settings import CompareSettings

pytestmark = pytest.mark.transformer_lens_3

HOOK = "blocks.0.hook_out"


def prompts(**values):
    return CompareSettings(runs="runs", out="out", prompts=True, **values)


def rows_of(token_id, row, word=None):
    n = len(token_id)
    labels, subset = torch.zeros(n, 1, dtype=torch.bool), torch.zeros(n, dtype=torch.long)
    return ConceptRows(
        torch.zeros(n, 2), torch.tensor(token_id), labels, subset, ["a"], row=torch.tensor(row), word=word
    )


def test_occurrences_that_nothing_is_taken_of_are_refused_beside_prompts():
    with pytest.raises(
        SettingsError, match="per_type is 4, and with --prompts --no-contextual no concept is looked for"
    ):
        _check_prompts(prompts(per_type=4, contextual=False), object())
    _check_prompts(prompts(per_type=4), object())
    _check_prompts(prompts(contextual=False), object())


def test_prompts_are_drawn_anew_by_word_and_rows_of_text_by_document():
    rows = rows_of([5, 6, 7, 8], [-1, -1, -1, 12], torch.tensor([0, 0, 1, 2]))
    units = _documents_of(rows, torch.tensor([3, 3, 4]), start=10).tolist()
    assert units[0] == units[1] != units[2] and min(units[:3]) < max(units[:3]) < 0 and units[3] == 4


def test_a_model_that_gives_no_numbers_on_prompts_is_told(tiny_store, monkeypatch):
    rows = rows_of([5, 6], [-1, -1])
    monkeypatch.setattr(evaluation_set, "vocabulary_rows", lambda *_: rows._replace(x=rows.x / 0))
    monkeypatch.setattr(evaluation_set, "inflected_rows", lambda rows, *_: rows)

    runs = Runs(Arm("none", 0.0), [], [], {}, [], {"hook": HOOK, "held_out_from_row": 900})
    with pytest.raises(SettingsError, match=f"the language model gives NaN or infinity at {HOOK} on prompts"):
        build_evaluation_set(prompts(contextual=False), sae_lm.open_store(tiny_store), runs, object())
