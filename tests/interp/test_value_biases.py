"""SAEs of hook_z whose model had its value biases folded away, in models that have them: as with folded weights."""

import json
from dataclasses import replace

import pytest
import tiny_models
import torch
from foreign_saes import connor_rob
from hand_made import CONTEXTS, write_store
from hand_made import HOOK as STORED
from safetensors.torch import load_file, save_file

import sae_lm
from sae_lm.data.store import open_store
from sae_lm.errors import SaeError
from sae_lm.interp.max_activating import fitting_hook
from sae_lm.interp.value_biases import fitted
from sae_lm.sae.formats.dictionary_learning_export import write as write_dictionary_learning
from sae_lm.sae.formats.saelens import save
from sae_lm.sae.formats.sparsify_export import write as write_sparsify
from sae_lm.sae.model import SAE

pytestmark = pytest.mark.transformer_lens_3

IDS = torch.tensor([[0, 5, 9, 33, 70, 12], [0, 8, 8, 250, 3, 44]])
HOOK = "blocks.1.attn.hook_z"


@pytest.fixture(
    scope="module", params=["GPT2LMHeadModel", "GPTNeoXForCausalLM", "Qwen2ForCausalLM", "LlamaForCausalLM"]
)
def folder(request, tmp_path_factory, tiny_model):
    """With biases that are not 0, as those of trained models."""
    folder = tiny_models.save(request.param, tmp_path_factory.mktemp(request.param), tiny_model)
    weights, draw = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if name.endswith("bias") and weight.is_floating_point() and weight.ndim == 1:
            weights[name] = torch.randn(weight.shape, generator=draw)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def raw(folder):
    return sae_lm.load_model(str(folder), device="cpu")


@pytest.fixture(scope="module")
def processed(folder):
    """As HookedTransformer's defaults had it."""
    model = sae_lm.load_model(str(folder), device="cpu")
    model.enable_compatibility_mode()
    return model


def for_folded(make_sae, biases="folded with norm", **changes):
    plain = make_sae("standard", d_in=16, d_sae=24, hook_name=HOOK)
    return SAE(replace(plain.config, value_biases=biases, **changes), dict(plain.named_parameters()))


def latents(model, sae):
    cache = sae_lm.run_with_cache(model, IDS, sae, keep=None)[1]
    return cache[f"{HOOK}.hook_sae_acts_post"], cache["hook_unembed" if "hook_unembed" in cache else "unembed.hook_out"]


@pytest.mark.parametrize("subtracted", [True, False])
def test_latents_and_logits_are_those_of_the_model_with_folded_weights(raw, processed, make_sae, subtracted):
    sae = for_folded(make_sae, apply_b_dec_to_input=subtracted)
    expected = latents(processed, for_folded(make_sae, "kept", apply_b_dec_to_input=subtracted))
    for model in (processed, raw):
        found, logits = latents(model, sae)
        torch.testing.assert_close(found, expected[0], rtol=1e-3, atol=1e-3)
        both = (logits.log_softmax(-1), expected[1].log_softmax(-1))
        torch.testing.assert_close(*both, rtol=1e-3, atol=1e-3)
    metric = sae_lm.logit_difference(7, 11)
    one, other = (sae_lm.attribute(model, IDS, metric, sae).dense() for model in (raw, processed))
    torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


def test_a_check_reads_what_the_sae_was_trained_on(raw, processed, make_sae):
    sae = for_folded(make_sae)
    said = [sae_lm.check(model, sae, ["the cat sat on the mat " * 20], tokens=64) for model in (raw, processed)]
    assert said[0].fit.loaded.fvu == pytest.approx(said[1].fit.loaded.fvu, rel=1e-2)


def test_the_fitted_sae_is_saved_and_read_as_one_of_the_models_own_activations(raw, make_sae, tmp_path):
    sae = for_folded(make_sae)
    save(fitted(raw, HOOK, sae), tmp_path / "sae")
    again = sae_lm.load(tmp_path / "sae", device="cpu")
    if fitted(raw, HOOK, sae) is not sae:
        assert again.config.value_biases == "kept" and not torch.equal(again.b_dec, sae.b_dec)
    else:
        assert again.config.value_biases == "folded with norm"
    torch.testing.assert_close(latents(raw, again)[0], latents(raw, sae)[0])


def test_what_cannot_be_moved_is_refused_where_there_is_something_to_move(raw, make_sae):
    sae = for_folded(make_sae)
    moves = fitted(raw, HOOK, sae) is not sae
    normalising = for_folded(make_sae, normalize_activations="layer_norm")
    trained = for_folded(make_sae)
    trained.b_dec.requires_grad_()
    for one, said in (
        (normalising, "normalises activations of a model without value"),
        (trained, "would not train them"),
    ):
        if moves:
            with pytest.raises(SaeError, match=f"{said}.*; call model.enable_compatibility_mode"):
                fitted(raw, HOOK, one)
        else:
            assert fitted(raw, HOOK, one) is one


def test_rows_of_a_store_are_refused_for_an_sae_that_lacks_value_biases(tmp_path, make_sae):
    write_store(tmp_path / "store", CONTEXTS)
    plain = make_sae("standard", d_in=7, d_sae=8, hook_name=STORED)
    folded = SAE(replace(plain.config, value_biases="folded"), dict(plain.named_parameters()))
    store = open_store(tmp_path / "store")
    assert fitting_hook("a", plain, store) == STORED
    for ask in (lambda: sae_lm.check(None, folded, store), lambda: fitting_hook("a", folded, store)):
        with pytest.raises(
            SaeError, match="value biases were folded away, and rows of a store may have them; save the"
        ):
            ask()


@pytest.mark.parametrize(
    ("version", "kwargs", "expected"),
    [
        ("6.54.12", None, "kept"),  # trained on models as they are
        ("6.54.12", {"fold_value_biases": True}, "folded"),
        ("6.54.12", {"fold_value_biases": True, "fold_ln": True}, "folded with norm"),
        ("3.2.0", {"center_writing_weights": False}, "folded with norm"),
        ("3.2.0", {"fold_value_biases": False}, "kept"),
        ("3.2.0", {"fold_ln": False}, "folded"),
        (None, None, "folded with norm"),
    ],
)
def test_a_file_of_saelens_says_whether_value_biases_were_folded(make_sae, tmp_path, version, kwargs, expected):
    save(make_sae("standard", hook_name=HOOK), tmp_path / "sae")
    file = tmp_path / "sae" / "cfg.json"
    config = json.loads(file.read_text())
    about = {
        "hook_name": HOOK,
        "model_name": "gpt2",
        "sae_lens_version": version,
        "model_from_pretrained_kwargs": kwargs,
    }
    config["metadata"] = {key: value for key, value in about.items() if value is not None}
    file.write_text(json.dumps(config))
    sae = sae_lm.load(tmp_path / "sae", device="cpu")
    assert sae.config.value_biases == expected
    assert any("value biases folded" in said for said in sae.provenance) == (expected != "kept")
    save(sae, tmp_path / "again")
    assert sae_lm.load(tmp_path / "again", device="cpu").config.value_biases == expected
    config["metadata"]["hook_name"] = "blocks.1.hook_out"
    file.write_text(json.dumps(config))
    assert sae_lm.load(tmp_path / "sae", device="cpu").config.value_biases == "kept"


def test_saes_of_connor_and_rob_lack_value_biases_and_go_to_no_format_that_cannot_say_it(tmp_path, make_sae):
    path, _ = connor_rob(tmp_path)
    assert sae_lm.load(path, device="cpu").config.value_biases == "folded with norm"
    topk = make_sae("topk", hook_name=HOOK)
    folded = SAE(replace(topk.config, value_biases="folded"), dict(topk.named_parameters()))
    for write in (write_dictionary_learning, write_sparsify):
        with pytest.raises(SaeError, match="cannot say that the model's value biases were folded away"):
            write(folded, tmp_path / "out")
    with pytest.raises(SaeError, match="value_biases is 'gone'; expected kept, folded, folded with norm"):
        replace(topk.config, value_biases="gone")
