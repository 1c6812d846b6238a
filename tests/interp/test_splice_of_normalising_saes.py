"""sae_lm.splice with SAEs that normalise each activation: the norm is undone in what the model goes on with."""

import pytest
import torch
from foreign_saes import FOREIGN

import sae_lm
from sae_lm.errors import SaeError
from sae_lm.sae.model import SAE, SaeConfig

pytestmark = pytest.mark.transformer_lens_3


@pytest.mark.parametrize("options", [{"normalize_activations": "layer_norm"}, {"normalize_activations": "constant_norm_rescale"},
                                     {"centred_input": True}])  # fmt: skip
def test_a_splice_undoes_the_norm_of_each_activation(tiny_model, options):
    draw = torch.Generator().manual_seed(0)
    weights = {"W_enc": torch.randn(16, 24, generator=draw), "b_enc": torch.zeros(24), "b_dec": torch.zeros(16)}
    config = SaeConfig(
        architecture="standard", d_in=16, d_sae=24, metadata={"hook_name": "blocks.1.hook_out"}, **options
    )
    sae = SAE(config, {**weights, "W_dec": torch.linalg.pinv(weights["W_enc"])})
    model, tokens, seen = sae_lm.load_model(str(tiny_model), device="cpu"), torch.arange(8)[None], {}
    with model.hooks(fwd_hooks=[("blocks.1.hook_out", lambda x, hook: seen.update(x=x))]):
        plain = model(tokens)
    with (
        sae_lm.splice(model, sae) as latents,
        latents.hooks(fwd_hooks=[("hook_sae_recons", lambda y, hook: seen.update(y=y))]),
    ):
        spliced = model(tokens)
    torch.testing.assert_close(seen["y"], sae(seen["x"]))
    assert not torch.allclose(spliced, plain)
    with sae_lm.splice(model, sae, error_term=True):
        torch.testing.assert_close(model(tokens), plain, atol=1e-4, rtol=1e-4)


def test_the_metrics_that_decode_what_fires_undo_the_norm_too(tmp_path):
    from sae_formulas import inputs

    from sae_lm.metrics.codes import active, decode_active

    for name in ("openai topk", "saelens centred", "saelens constant_norm_rescale", "sparsify groupmax"):
        path, _ = FOREIGN[name][0](tmp_path / name.replace(" ", "_"))
        sae, x = sae_lm.load(path, "cpu"), inputs()
        torch.testing.assert_close(decode_active(sae, *active(sae, x), x), sae(x))
        if sae.config.normalises:
            with pytest.raises(SaeError, match="give the activation too"):
                decode_active(sae, *active(sae, x))
