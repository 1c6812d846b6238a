"""Activations with heads (hook_z): stored side by side, and an SAE of them checked, compared and put into the model."""

import pytest
import torch

import sae_lm
from sae_lm.commands.cache import cache
from sae_lm.commands.check import check
from sae_lm.commands.compare import compare
from sae_lm.comparison.foreign import read_foreign
from sae_lm.errors import ModelError
from sae_lm.metrics.language_model import HeldOutText, cross_entropies
from sae_lm.sae.formats.saelens import save
from sae_lm.settings import CompareSettings

pytestmark = pytest.mark.transformer_lens_3

HOOK = "blocks.1.attn.hook_z"


@pytest.fixture(scope="module")
def model(tiny_model):
    return sae_lm.load_model(str(tiny_model), device="cpu")


@pytest.fixture(scope="module")
def store(cache_settings, tmp_path_factory):
    return sae_lm.open_store(cache(cache_settings(tmp_path_factory.mktemp("heads") / "store", hooks=HOOK)))


@pytest.fixture
def sae(make_sae):
    return make_sae("standard", d_in=16, d_sae=32, hook_name=HOOK)


def test_a_store_of_heads_holds_them_side_by_side(model, store):
    assert store.hooks == {HOOK: 16}
    blocks = store.blocks(0, 4).long()
    z = model.run_with_cache(blocks, names_filter=HOOK)[1][HOOK]
    assert z.shape == (4, 16, 2, 8)
    rows = z.flatten(2)[~store.rowless(0, 4)]
    torch.testing.assert_close(store.rows(HOOK, 0, len(rows)), rows, rtol=1e-4, atol=1e-5)


def test_a_hook_that_transformer_lens_keeps_switched_off_is_one_sentence(cache_settings, tmp_path):
    with pytest.raises(ModelError, match="hook blocks.0.attn.hook_result cannot be used: .*use_attn_result"):
        cache(cache_settings(tmp_path / "store", hooks="blocks.0.attn.hook_result", forward="bridge"))


def test_check_and_compare_measure_the_same_cross_entropy_there(model, store, sae, tiny_model, tmp_path):
    def measured(first, stop):
        text = HeldOutText(store.blocks(first, stop).long(), store.rowless(first, stop), HOOK)
        return cross_entropies(model, text, {"it": sae})["it"]

    save(sae, tmp_path / "saes" / "one")
    values = {"runs": tmp_path / "saes", "store": store.path, "out": tmp_path / "report", "min_words": 1}
    settings = CompareSettings(**values, model=str(tiny_model), ce_contexts=8)
    report = compare(settings)
    first = read_foreign(settings).training["held_out_from_context"]
    expected = measured(first, min(store.manifest.contexts, first + 8))
    assert report["cross_entropy"]["tokens"] == expected.tokens
    assert report["cross_entropy"]["clean"] == pytest.approx(expected.clean, rel=1e-5)
    assert report["arms"]["one"]["values"]["ce_spliced"] == [pytest.approx(expected.spliced, rel=1e-5)]
    checked = check(model, sae, store, tokens=4 * 16).losses
    expected = measured(store.manifest.contexts - 4, store.manifest.contexts)
    assert checked is not None and list(checked[:6]) == pytest.approx(list(expected[:6]), rel=1e-5, nan_ok=True)
    assert checked.spliced != checked.clean
