"""Devices that have no float64, as mps: what sums in it is refused in a sentence, all else works there."""

import pytest
from simulated_device import NAME, simulated_device

import sae_lm
from sae_lm.commands.check import run
from sae_lm.errors import SettingsError
from sae_lm.settings import CheckSettings

pytestmark = pytest.mark.transformer_lens_3


@pytest.mark.filterwarnings("ignore:this TransformerLens loses the keys")
def test_a_model_is_loaded_there_and_continues_a_text_as_on_the_cpu(tiny_model):
    with simulated_device(float64=False):
        there = sae_lm.generate(sae_lm.load_model(str(tiny_model), device=NAME), "the quick", max_new_tokens=4)
    model = sae_lm.load_model(str(tiny_model), device="cpu")
    assert there == sae_lm.generate(model, "the quick", max_new_tokens=4)


def test_check_is_refused_there_before_anything_is_loaded(tmp_path):
    with simulated_device(float64=False), pytest.raises(SettingsError, match="'simulated' has no float64, which"):
        run(CheckSettings(sae=str(tmp_path / "nowhere"), device=NAME))


@pytest.mark.parametrize("where", ["the SAE", "the model"])
def test_check_is_refused_of_what_was_loaded_there(tiny_model, tiny_store, make_sae, where):
    store = sae_lm.open_store(tiny_store)
    with simulated_device(float64=False):
        model = sae_lm.load_model(str(tiny_model), device=NAME if where == "the model" else "cpu")
        sae = make_sae(d_in=16).to(NAME if where == "the SAE" else "cpu")
        with pytest.raises(
            SettingsError, match="'simulated:0' has no float64, which figures are summed in; give `cpu`"
        ):
            sae_lm.check(model, sae, store, tokens=100)
