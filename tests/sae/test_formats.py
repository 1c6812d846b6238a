"""sae_lm.sae.formats: an SAE of every foreign format computes what its library computes, and says what was decided."""

import re
from pathlib import Path

import pytest
import torch
from foreign_saes import FOREIGN
from sae_formulas import D, inputs

import sae_lm
from sae_lm.sae.formats.saelens import save


@pytest.mark.parametrize("name", FOREIGN)
def test_an_sae_of_every_format_computes_what_its_formula_says(tmp_path, name):
    write, hook = FOREIGN[name]
    path, formula = write(tmp_path)
    sae, x = sae_lm.load(path, "cpu"), inputs()
    z, x_hat = formula(x)
    torch.testing.assert_close(sae.encode(x), z.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae(x), x_hat.float(), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(sae.decode(sae.encode(x), x), sae(x))
    assert (z > 0).any() and (z == 0).any()
    assert sae.config.metadata["hook_name"] == hook
    assert sae.config.d_in == D and all(parameter.dtype == torch.float32 for parameter in sae.parameters())


@pytest.mark.parametrize("name", FOREIGN)
def test_provenance_names_the_format_the_hook_and_every_file_with_its_checksum(tmp_path, name):
    path, _ = FOREIGN[name][0](tmp_path)
    sae = sae_lm.load(path, "cpu")
    told = "\n".join(sae.provenance)
    assert sae.provenance[0].startswith(f"read as {name.split()[0].strip(',')}")
    assert "sha256" in told and sae.config.metadata["hook_name"] in told
    assert len(set(sae.provenance)) == len(sae.provenance)


def test_the_documents_example_runs(tmp_path, monkeypatch, make_sae):
    text = (Path(__file__).parents[2] / "sae_lm" / "sae" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    save(make_sae(), tmp_path / "runs" / "none-seed0")
    FOREIGN["openai topk"][0](tmp_path)[0].rename("8.pt")
    space: dict = {}
    exec(compile(code[1], "README.md", "exec"), space)
    assert torch.equal(space["x_hat"], space["sae"](space["x"])) and space["sae"].config.architecture == "topk"


@pytest.mark.parametrize("name", FOREIGN)
def test_naming_the_right_format_changes_nothing(tmp_path, name):
    path, _ = FOREIGN[name][0](tmp_path)
    x = inputs()
    named = sae_lm.load(path, "cpu", format=name.split()[0].strip(","))
    assert torch.equal(named(x), sae_lm.load(path, "cpu")(x))
