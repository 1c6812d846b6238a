"""sae_lm.metrics.causal: absorbers are found, and taking them away is zeroing them in a splice with its error term."""

import pytest
import torch
from toys import as_codes

import sae_lm
from sae_lm.metrics.absorption import ConceptAtSae
from sae_lm.metrics.causal import find_absorbers, parts_of, removal_divergences, still_says_yes

pytestmark = pytest.mark.transformer_lens_3
HOOK = "blocks.1.hook_out"


def test_the_absorber_and_the_latent_of_the_nearest_strength_are_named():
    probe = torch.tensor([1.0, 0.0, 0.0])
    W_dec = torch.tensor([[1.0, 0, 0], [2.0, 2.0, 0], [0, 1.0, 0], [0, 0, 1.0]])  # main, absorber, two others
    dense = torch.tensor([[0.0, 3, 1, 2.5], [2, 3, 1, 0], [0, 3, 0, 0], [0, 0.1, 1, 1], [0, 4, 4.5, 9]])
    x = torch.tensor([[2.0, 2, 2], [4, 2, 1], [2, 2, 0], [2, 1, 1], [3, 9, 9]])
    found = find_absorbers(ConceptAtSae(as_codes(dense), x, torch.arange(5), W_dec, probe), [0])
    # the second row has its main latent, the third nothing beside the absorber, in the fourth it carries too little
    assert found.place.tolist() == [0, 2, 4] and found.absorber.tolist() == [1, 1, 1]
    assert found.other.tolist() == [3, -1, 2]
    parts = parts_of(W_dec, found.absorber, found.strength)
    torch.testing.assert_close(parts.norm(dim=1), found.strength)
    assert still_says_yes(x[found.place], parts, probe, -1.0).tolist() == [False, False, False]
    beside = found.other >= 0
    parts = parts_of(W_dec, found.other[beside], found.strength[beside])
    assert still_says_yes(x[found.place[beside]], parts, probe, -1.0).all()


def test_taking_a_part_away_is_zeroing_the_latent_in_a_splice_with_its_error_term(tiny_model, make_sae):
    model, sae = sae_lm.load_model(str(tiny_model)), make_sae("standard", d_in=16, d_sae=32, unit=False)
    blocks = torch.randint(1, 300, (20, 12), generator=torch.Generator().manual_seed(0))
    position = torch.arange(20) % 12
    at = torch.arange(20), position
    z = sae.encode(model.run_with_cache(blocks, names_filter=HOOK)[1][HOOK][at])
    strength, latent = (z * sae.W_dec.norm(dim=1)).max(1)
    parts = parts_of(sae.W_dec, latent, strength)
    got, none = removal_divergences(model, HOOK, blocks, position, [parts, torch.zeros_like(parts)])

    def zero(acts, hook):
        acts[at[0], at[1], latent] = 0
        return acts

    clean = model(blocks)[at].log_softmax(-1)
    with sae_lm.splice(model, sae, error_term=True) as latents, latents.hooks(fwd_hooks=[("hook_sae_acts_post", zero)]):
        without = model(blocks)[at].log_softmax(-1)
    expected = (clean.exp() * (clean - without)).sum(1)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)
    assert float(got.mean()) > 1e-3 and float(none.abs().max()) < 1e-5
