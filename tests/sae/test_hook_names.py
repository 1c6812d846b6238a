"""What foreign SAEs call a place in a model, and what a TransformerBridge calls it."""

import pytest

from sae_lm.sae.hook_names import bridge_hook, named_in

pytestmark = pytest.mark.transformer_lens_3


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("google/gemma-2b", "blocks.3.hook_mlp_out"),  # the first Gemma: no norm stands behind its MLP
        ("google/gemma-7b-it", "blocks.3.hook_mlp_out"),
        ("google/gemma-2-2b", "blocks.3.mlp.hook_out"),
        ("google/gemma-3-1b-pt", "blocks.3.mlp.hook_out"),
        ("gemma2-9b", "blocks.3.mlp.hook_out"),
        ("EleutherAI/pythia-70m", "blocks.3.hook_mlp_out"),
        ("", "blocks.3.hook_mlp_out"),
    ],
)
def test_an_mlps_output_is_the_modules_where_a_norm_stands_behind_it(model, expected):
    assert bridge_hook("model.layers.3.mlp", model) == expected


@pytest.mark.parametrize("name", ["mlp_out_layer_5", "attn_out_layer_5", "attention_out_layer_5", "resid_post_layer_5"])
def test_dictionary_learnings_names_are_those_of_the_modules_that_it_reads(name):
    """Its activations are outputs of Hugging Face's modules, before the norm that stands behind some of them."""
    module = {"mlp": "model.layers.5.mlp", "resid": "model.layers.5"}.get(
        name.split("_")[0], "model.layers.5.self_attn"
    )
    for model in ("google/gemma-2-2b", "google/gemma-3-1b-pt", "google/gemma-2b", "EleutherAI/pythia-70m", ""):
        assert bridge_hook(name, model) == bridge_hook(module, model)
        assert named_in(f"user/repo:gemma/{name}/trainer_8", model) == bridge_hook(module, model)
