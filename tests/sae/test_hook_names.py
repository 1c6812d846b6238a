"""What foreign SAEs call a place in a model, and what a TransformerBridge calls it."""

import pytest

from sae_lm.sae.hook_names import bridge_hook

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
