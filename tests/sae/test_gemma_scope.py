"""Gemma Scope's SAEs on this disk: what stands above the repository in a path says nothing of an SAE."""

import json

import pytest
import torch
from foreign_saes import FOREIGN
from sae_formulas import inputs

import sae_lm
from sae_lm.errors import SaeError

GEMMA = [name for name in FOREIGN if name.startswith("gemma_scope")]


@pytest.mark.parametrize("above", ["layer_3", "embedding", "transcoders", "clt", "my-mlp_out/gemma-scope-9b-it-att/x"])
@pytest.mark.parametrize("name", GEMMA)
def test_a_folder_above_the_repository_changes_nothing(tmp_path, name, above):
    write, hook = FOREIGN[name]
    path, formula = write(tmp_path / above)
    if name == "gemma_scope_2":  # whose hook is then told by the folder's name
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "hf_hook_point_in": None, "hf_hook_point_out": None}))
    sae, x = sae_lm.load(path, "cpu"), inputs()
    assert sae.config.metadata["hook_name"] == hook
    assert sae.config.metadata["model_name"] in ("google/gemma-2-2b", "google/gemma-3-1b-pt")
    torch.testing.assert_close(sae(x), formula(x)[1].float(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", GEMMA)
def test_a_folder_without_the_repositorys_name_is_read_by_its_own_names(tmp_path, name):
    write, hook = FOREIGN[name]
    path, formula = write(tmp_path)
    depth = 2 if name == "gemma_scope_2" else 3
    place = tmp_path / "layer_3" / "transcoder" / "mine" / "/".join(path.parts[-depth:])
    place.parent.mkdir(parents=True)
    path.rename(place)
    sae, x = sae_lm.load(place, "cpu", hook=hook), inputs()
    torch.testing.assert_close(sae(x), formula(x)[1].float(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("gemma_scope", "google/gemma-scope-2b-pt-transcoders/layer_20/width_16k/average_l0_71"),
        ("gemma_scope", "transcoder/width_16k/average_l0_71"),
        ("gemma_scope_2", "google/gemma-scope-2-1b-pt/transcoder/layer_12_width_16k_l0_big"),
        ("gemma_scope_2", "google/gemma-scope-2-1b-pt/clt/width_16k_l0_big/params_layer_3"),
        ("gemma_scope_2", "transcoder_all/layer_12_width_16k_l0_big"),
    ],
)
def test_a_transcoder_of_that_repository_is_refused(tmp_path, name, place):
    path, _ = FOREIGN[name][0](tmp_path)
    (tmp_path / "x" / place).parent.mkdir(parents=True)
    path.rename(tmp_path / "x" / place)
    with pytest.raises(SaeError, match="is a transcoder"):
        sae_lm.load(tmp_path / "x" / place, "cpu", hook="blocks.12.hook_out")
