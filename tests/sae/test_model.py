"""sae_lm.sae.model: what each architecture computes."""

import pytest
import torch

from sae_lm.errors import SaeError


def test_each_architecture_computes_what_its_formula_says(make_sae):
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    for architecture in ("standard", "topk", "jumprelu"):
        sae = make_sae(architecture)
        expected = torch.zeros(20, 10)
        for row in range(20):
            pre = [float((x[row] - sae.b_dec) @ sae.W_enc[:, i] + sae.b_enc[i]) for i in range(10)]
            largest = sorted(pre, reverse=True)[:3]
            for i in range(10):
                on = pre[i] > 0
                if architecture == "topk":
                    on = on and pre[i] in largest
                if architecture == "jumprelu":
                    on = on and pre[i] > float(sae.threshold[i])
                expected[row, i] = pre[i] if on else 0
        torch.testing.assert_close(sae.encode(x), expected)
        torch.testing.assert_close(sae(x), expected @ sae.W_dec + sae.b_dec)


def test_leading_dimensions_and_dtype_of_the_input_are_kept(make_sae):
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))
    sae = make_sae()
    assert sae.encode(x).shape == (2, 3, 10)
    assert sae(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(sae(x)[1, 2], sae(x[1, 2]))


def test_input_of_another_width_is_refused(make_sae):
    with pytest.raises(SaeError, match="width 5, this SAE was trained on width 6"):
        make_sae().encode(torch.zeros(2, 5))
    d_sae = make_sae().config.d_sae
    with pytest.raises(SaeError, match=f"latents have width 5, this SAE has {d_sae}"):
        make_sae().decode(torch.zeros(2, 5))
