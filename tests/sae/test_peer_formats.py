"""Loaded SAEs beside their own libraries' classes, and ours in theirs. Runs where one of those libraries is installed.

sae-lens has an environment of its own in `.ci/run`; for dictionary-learning and eai-sparsify see sae_lm/sae/README.md.
"""

from importlib.util import find_spec

import pytest
import torch
from foreign_saes import FOREIGN
from peer_saes import peer_cases, read_by_peers
from sae_formulas import inputs

import sae_lm
from sae_lm.errors import SaeError

pytestmark = pytest.mark.transformer_lens_3

CASES = dict(peer_cases())
TARGETS = {"saelens": "sae_lens", "dictionary_learning": "dictionary_learning", "sparsify": "sparsify"}
INSTALLED = [target for target, library in TARGETS.items() if find_spec(library)]
if not INSTALLED:
    pytest.skip("needs sae-lens, dictionary-learning or eai-sparsify", allow_module_level=True)


@pytest.mark.parametrize("name", CASES)
def test_what_a_library_has_written_computes_what_its_own_class_computes(tmp_path, name):
    path, encode, forward = CASES[name](tmp_path)
    sae, x = sae_lm.load(path, "cpu"), inputs()
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x), encode(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(sae(x), forward(x), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("target", INSTALLED)
@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_exported_is_read_by_the_targets_own_class_with_equal_outputs(tmp_path, name, target):
    from sae_lm.sae.export import export

    path, _ = FOREIGN[name][0](tmp_path)
    sae, x = sae_lm.load(path, "cpu"), inputs()
    try:
        export(sae, target, tmp_path / "out")
    except SaeError:
        pytest.skip(f"{target} cannot express it")
    encode, forward = read_by_peers(tmp_path / "out", target)
    if sae.config.centred_input:  # which SAELens leaves to the model
        x = x - x.mean(1, keepdim=True)
    has_heads = sae.config.metadata["hook_name"].endswith("hook_z")
    theirs = x.unflatten(1, (2, -1)) if target == "saelens" and has_heads else x
    with torch.no_grad():
        torch.testing.assert_close(encode(theirs), sae.encode(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(forward(theirs).view_as(x), sae(x), atol=2e-5, rtol=1e-5)
