"""sae-lm convert: an SAE of any format written for another library, and what cannot be said there refused."""

import json
from dataclasses import replace

import pytest
import torch
from foreign_saes import FOREIGN
from sae_formulas import inputs

import sae_lm
from sae_lm.cli import main
from sae_lm.errors import SaeError
from sae_lm.sae.export import export

NORMALISING = {
    "saelens layer_norm",
    "saelens constant_norm_rescale",
    "saelens centred",
    "openai topk",
    "llama_scope, W_E, topk",
}


def expressible(sae, name, target):
    if target == "saelens":
        return sae.config.architecture != "groupmax"
    if name in NORMALISING or sae.config.value_biases != "kept":
        return False
    return sae.config.architecture in (
        ("topk", "groupmax") if target == "sparsify" else ("standard", "topk", "jumprelu")
    )


@pytest.mark.parametrize("target", ["saelens", "dictionary_learning", "sparsify"])
@pytest.mark.parametrize("name", FOREIGN)
def test_an_sae_comes_back_from_every_target_that_can_express_it_and_others_refuse(tmp_path, name, target):
    path, _ = FOREIGN[name][0](tmp_path)
    sae, x = sae_lm.load(path, "cpu"), inputs()
    if not expressible(sae, name, target):
        with pytest.raises(SaeError, match="has no|alone|cannot say"):
            export(sae, target, tmp_path / "out")
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.part"))
        return
    export(sae, target, tmp_path / "out")
    back = sae_lm.load(tmp_path / "out", "cpu")
    torch.testing.assert_close(back.encode(x), sae.encode(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(back(x), sae(x), atol=1e-5, rtol=1e-5)
    assert back.config.metadata["hook_name"] == sae.config.metadata["hook_name"]


def by_load_dictionary(folder):
    """A standard SAE as dictionary_learning's load_dictionary reads it, which makes an AutoEncoder's decoder rows unit."""
    name = json.loads((folder / "config.json").read_text())["trainer"]["dict_class"]
    state = torch.load(folder / "ae.pt", weights_only=True)
    W, b = state["encoder.weight"], state["encoder.bias"]
    if name == "AutoEncoderNew":
        return lambda x: torch.relu(x @ W.T + b)
    assert name == "AutoEncoder"
    norm = state["decoder.weight"].norm(dim=0)
    norm = torch.ones_like(norm) if torch.allclose(norm, torch.ones_like(norm)) else norm
    return lambda x: torch.relu(((x - state["bias"]) @ W.T + b) * norm)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("subtracted", [True, False])
def test_a_standard_sae_has_equal_activations_in_dictionary_learning(make_sae, tmp_path, unit, subtracted):
    sae = make_sae("standard", unit=unit)
    sae.config = replace(sae.config, apply_b_dec_to_input=subtracted)
    export(sae, "dictionary_learning", tmp_path / "out")
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(by_load_dictionary(tmp_path / "out")(x), sae.encode(x), atol=1e-5, rtol=1e-5)


def test_convert_tells_what_was_decided_and_keeps_it(tmp_path, capsys):
    path, _ = FOREIGN["gemma_scope"][0](tmp_path)
    assert main(["convert", str(path), "--to", "saelens", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "decided: b_dec not subtracted from the input: Gemma Scope" in told
    assert told.endswith(f"SAE: {tmp_path / 'out'}\n")
    kept = json.loads((tmp_path / "out" / "cfg.json").read_text())["metadata"]
    assert "model google/gemma-2-2b from the repository's name" in kept["provenance"]
    assert kept["original_hook_name"] == "blocks.20.hook_resid_post" and kept["claimed_l0"] == 71
    sae_lm.load(tmp_path / "out", "cpu")


@pytest.mark.parametrize("name", ["gemma_scope", "openai topk", "dictionary_learning BatchTopKSAE"])
def test_inspect_says_of_any_sae_what_was_decided(tmp_path, capsys, name):
    path, _ = FOREIGN[name][0](tmp_path)
    assert main(["inspect", str(path)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("SAE(") and "loaded: read as " in told and "loaded: hook blocks." in told


def test_convert_replaces_nothing(tmp_path, capsys):
    path, _ = FOREIGN["saelens topk"][0](tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert main(["convert", str(path), "--to", "sparsify", "--out", str(tmp_path / "out")]) == 2
    assert "exists already and is not replaced" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("target", ["saelens", "dictionary_learning", "sparsify"])
def test_numbers_that_json_has_not_are_null_in_what_is_written(tmp_path, capsys, target):
    path, _ = FOREIGN["saelens topk"][0](tmp_path)
    config = json.loads((path / "cfg.json").read_text())
    config["metadata"] |= {"l0": float("nan"), "norms": [float("inf"), 1.5]}
    (path / "cfg.json").write_text(json.dumps(config))
    assert main(["convert", str(path), "--to", target, "--out", str(tmp_path / "out")]) == 0
    assert "NaN, Infinity in the metadata is null here" in capsys.readouterr().out
    metadata = sae_lm.load(tmp_path / "out", "cpu").config.metadata
    assert (metadata["l0"], metadata["norms"]) == (None, [None, 1.5])


def test_an_old_version_that_an_sae_names_is_not_written_on(tmp_path):
    path, _ = FOREIGN["saelens before 6"][0](tmp_path)
    config = json.loads((path / "cfg.json").read_text())
    (path / "cfg.json").write_text(json.dumps({**config, "sae_lens_version": "4.1.0"}))
    export(sae_lm.load(path, "cpu"), "saelens", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "cfg.json").read_text())["metadata"]["sae_lens_version"].startswith("6.")
