"""The model that a store was cached from is found again, wherever it lies now, and asked only for what it can say."""

import pytest
import tiny_models

import sae_lm
from sae_lm.comparison.language_model import LanguageModel, boot_model, if_causal
from sae_lm.data.store import open_store
from sae_lm.errors import SaeError, SaeLmWarning
from sae_lm.settings import CompareSettings

pytestmark = pytest.mark.transformer_lens_3


def test_a_model_of_the_hub_that_lies_in_a_folder_now_is_taken_by_its_shape(tiny_store, tiny_model):
    store = open_store(tiny_store)
    store.manifest.recipe.model.update(id="owner/tiny", revision="0" * 40, files_sha256=None)
    settings = CompareSettings(runs="runs", out="out", model=str(tiny_model))
    assert boot_model(settings, store, "cpu").name == str(tiny_model)
    store.manifest.recipe.model["d_model"] = 17
    with pytest.raises(SaeError, match="has width 16, the store was cached from one with 17; give the same model"):
        boot_model(settings, store, "cpu")


@pytest.mark.parametrize("has", [True, False])
def test_a_model_in_a_dtype_that_is_imitated_here_is_told_to_be_slow(tiny_store, tiny_model, monkeypatch, recwarn, has):
    monkeypatch.setattr("sae_lm.runtime.device.has_bfloat16", lambda device: has)
    store = open_store(tiny_store)
    store.manifest.recipe.model["dtype"] = "bfloat16"  # as on the card that the store was cached on
    boot_model(CompareSettings(runs="runs", out="out", model=str(tiny_model)), store, "cpu")
    said = [str(one.message) for one in recwarn if issubclass(one.category, SaeLmWarning)]
    slow = "this cpu only imitates bfloat16, which is many times slower; the store was cached in it; give fewer"
    assert any(slow in one for one in said) is not has


@pytest.mark.parametrize(("architecture", "causal"), [("BertForMaskedLM", False), ("LlamaForCausalLM", True)])
def test_a_model_that_looks_ahead_is_given_no_cross_entropy(
    tiny_store, tiny_model, tmp_path, recwarn, architecture, causal
):
    folder = tiny_models.save(architecture, tmp_path, tiny_model)
    model = LanguageModel("it", sae_lm.load_model(str(folder), device="cpu"))
    assert (if_causal(model, open_store(tiny_store)) is model) is causal
    assert any("as a BERT's do" in str(one.message) for one in recwarn) is not causal
