"""sae_lm.check says whether an SAE is loaded right, and what is wrong where it is not."""

import json
from inspect import unwrap

import pytest
import torch

import sae_lm
from sae_lm.cli import main
from sae_lm.commands.check import _verdict, check
from sae_lm.embedded.text import embedded_documents
from sae_lm.errors import ModelError, SaeError, SettingsError, StoreError
from sae_lm.metrics.fit import Fit, Reading
from sae_lm.metrics.reconstruction import Quality
from sae_lm.sae.formats.saelens import save
from sae_lm.sae.model import SAE, SaeConfig

pytestmark = pytest.mark.transformer_lens_3

HOOK = "blocks.1.hook_out"
KEPT = 12
"""Principal components of the rows that the SAE keeps."""


@pytest.fixture(scope="module")
def model(tiny_model):
    return sae_lm.load_model(str(tiny_model), device="cpu")


@pytest.fixture(scope="module")
def store(tiny_store):
    return sae_lm.open_store(tiny_store)


def fitted(rows, kept, hook):
    """Exact on the leading components of the rows, on which its bias lies; it has to be subtracted to fit."""
    mean = rows.mean(0)
    directions = torch.linalg.svd(rows - mean, full_matrices=False)[2][:kept]
    W_dec = torch.cat([directions, -directions])
    spread = float((rows - mean).norm(dim=1).mean())
    config = SaeConfig(architecture="standard", d_in=rows.shape[1], d_sae=2 * kept, metadata={"hook_name": hook})
    b_dec = mean + 3 * spread * directions.sum(0) / kept**0.5
    weights = {"W_enc": W_dec.T, "b_enc": torch.zeros(2 * kept), "W_dec": W_dec, "b_dec": b_dec}
    return SAE(config, weights, ["read as a test"])


@pytest.fixture(scope="module")
def sae(store):
    return fitted(store.rows(HOOK).float(), KEPT, HOOK)


def changed(sae, weights=(), metadata=(), **config):
    about = {**vars(sae.config), **config, "metadata": {**sae.config.metadata, **dict(metadata)}}
    return SAE(SaeConfig(**about), {**dict(sae.named_parameters()), **dict(weights)})


def test_an_sae_that_fits_is_loaded_right_on_a_store_on_text_and_without_a_model(model, store, sae, text_file):
    for model_or_none, source in (
        (model, store),
        (model, str(text_file)),
        (model, ["A quick brown fox."] * 40),
        (None, store),
    ):
        found = check(model_or_none, sae, source, tokens=600, context_size=None if source is store else 16)
        assert found.fits, str(found)
        assert found.verdict.startswith("Loaded right, as far as one can see: FVU ")
        assert (found.losses is None) == (model_or_none is None)


def test_contexts_of_a_store_are_cut_and_no_other_size_of_them_is_passed_over(model, store, sae):
    for model_or_none in (model, None):
        with pytest.raises(SettingsError, match="context_size is of no use with a store, whose contexts are cut"):
            check(model_or_none, sae, store, context_size=16)


def test_the_figures_are_those_of_the_rows_and_of_a_splice(model, store, sae):
    found = check(model, sae, store, tokens=300)
    blocks = store.blocks(store.manifest.contexts - -(-300 // store.manifest.recipe.context_size)).long()
    special = store.rowless(store.manifest.contexts - len(blocks), store.manifest.contexts)
    x = model.run_with_cache(blocks, names_filter=HOOK)[1][HOOK][~special]
    assert found.rows == len(x)
    fvu = float((x - sae(x)).square().sum() / (x - x.mean(0)).square().sum())
    assert found.fit.loaded.fvu == pytest.approx(fvu, rel=1e-5)
    with sae_lm.splice(model, sae):
        logits = model(blocks)[:, :-1]
    wanted = ~special[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits[wanted], blocks[:, 1:][wanted])
    assert found.losses is not None and found.losses.spliced == pytest.approx(float(loss), rel=1e-5)


def test_the_cross_entropy_is_that_of_compare(model, store, sae):
    from sae_lm.metrics.language_model import HeldOutText, cross_entropies

    first = store.manifest.contexts - -(-300 // store.manifest.recipe.context_size)
    blocks, special = store.blocks(first).long(), store.rowless(first, store.manifest.contexts)
    found = check(model, sae, store, tokens=300).losses
    assert found is not None and found.tokens == int((~special[:, :-1]).sum())
    expected = cross_entropies(model, HeldOutText(blocks, special, HOOK), {"it": sae})["it"]
    assert list(found[:6]) == pytest.approx(list(expected[:6]), rel=1e-5)


def test_an_sae_of_another_block_is_found_out():
    model = sae_lm.load_model("embedded", device="cpu")
    texts = [model.to_tokens(document.text)[:, :128] for document in embedded_documents()[:12]]
    seen = [model.run_with_cache(ids, names_filter="blocks.1.hook_out")[1]["blocks.1.hook_out"][0, 1:] for ids in texts]
    rows = torch.cat(seen)
    sae = fitted(rows, 96, "blocks.2.hook_resid_post")
    found = check(model, sae, "embedded", tokens=600)
    assert not found.fits and found.fit.best.changes == ("on blocks.1.hook_out",)
    assert found.verdict.startswith("Not loaded right: it fits better on blocks.1.hook_out (FVU ")


def test_a_bias_not_subtracted_and_a_wrong_claim_are_told(model, store, sae):
    wrong = check(model, changed(sae, apply_b_dec_to_input=False, metadata={"claimed_l0": 12}), store, tokens=800)
    assert "with b_dec subtracted from the input" in wrong.verdict
    many = check(model, changed(sae, metadata={"claimed_l0": 100}), store, tokens=800)
    assert not many.fits and "but L0 is 12, claimed 100" in many.verdict


def test_the_folder_of_a_store_is_the_store_and_its_manifest_no_text(model, store, tiny_store, sae):
    for folder in (tiny_store, str(tiny_store)):
        found = check(model, sae, folder, tokens=300)
        assert found.rows == check(model, sae, store, tokens=300).rows > 100
        assert found.fit.loaded == check(model, sae, store, tokens=300).fit.loaded


def test_a_change_that_helps_a_little_is_remarked_and_no_verdict(model, store):
    rows = store.rows(HOOK).float()
    sae = fitted(rows, 7, HOOK)
    near = SAE(
        sae.config, {**dict(sae.named_parameters()), "b_dec": sae.b_dec * 0.02 + rows.mean(0) * 0.98}, ["a test"]
    )
    found = check(model, changed(near, apply_b_dec_to_input=False), store, tokens=800)
    assert not found.fit.best.changes
    (remark,) = found.remarks
    assert remark.startswith("It fits a little better with b_dec subtracted from the input (FVU ")
    assert remark in str(found) and "fits clearly better" in found.verdict


def test_another_k_than_it_was_trained_with_is_told(model, store, sae):
    topk = changed(sae, architecture="topk", k=2, metadata={"training": {"k": 8}})
    claims = check(model, topk, store, tokens=300).claims
    assert claims == [("L0", "8", "2", False)]


@pytest.mark.parametrize(("arch", "claimed"), [("relu", 0), ("jumprelu", 0), ("batchtopk", 1)])
def test_a_k_that_a_fixed_sparsity_coefficient_left_open_is_no_claim(store, sae, arch, claimed):
    metadata = {"arm": "none@k=90", "training_architecture": arch, "training": {"k": 90, "sparsity_coefficient": 0.1}}
    found = check(None, changed(sae, metadata=metadata), store, tokens=300)
    assert len(found.claims) == claimed


def test_a_hook_the_store_has_not_is_measured_by_the_model(model, store, sae):
    found = check(model, sae, store, hook="blocks.1.hook_mlp_out", tokens=300)
    assert any(remark.startswith("The store has no blocks.1.hook_mlp_out, only ") for remark in found.remarks)
    assert "on blocks.1.hook_out" in found.verdict


def test_random_weights_are_said_not_to_fit_and_that_nothing_helps(model, store, make_sae):
    random = make_sae(d_in=16, d_sae=32)
    found = check(model, changed(random, metadata={"hook_name": HOOK}), store, tokens=800)
    assert found.verdict.startswith("It does not fit (FVU ") and "nothing that was tried makes it fit" in found.verdict


def test_that_nothing_makes_it_fit_is_said_only_where_no_reading_does():
    def reading(fvu, *changes):
        return Reading(changes, "own", Quality(100, *[fvu] * (len(Quality._fields) - 1)))

    loaded, change = reading(0.75), reading(0.66, "b_dec subtracted from the input")
    assert "nothing that was tried makes it fit clearly better" in _verdict(Fit([loaded, change], loaded), None, [])
    assert "nothing that was tried makes it fit:" in _verdict(Fit([loaded, reading(0.72, "x")], loaded), None, [])


def test_another_model_than_the_stores_and_the_saes_is_remarked(model, store, sae, tmp_path):
    from conftest import save_tiny_model

    other = sae_lm.load_model(str(save_tiny_model(tmp_path / "other", layers=2)), device="cpu")
    found = check(other, changed(sae, metadata={"model_name": "gpt2"}), store, tokens=300)
    assert any(remark.startswith("The SAE names the model gpt2, this one is") for remark in found.remarks)
    assert any(remark.startswith("The model's activations are not the store's") for remark in found.remarks)
    assert check(model, sae, store, tokens=300).remarks == []


def test_the_library_names_of_gpt2_are_one_model(model, store, sae, monkeypatch):
    monkeypatch.setattr(model.original_model.config, "_name_or_path", "gpt2")
    found = check(model, changed(sae, metadata={"model_name": "gpt2-small"}), store, tokens=300)
    assert not any("names the model" in remark for remark in found.remarks)


def test_what_cannot_be_checked_is_one_sentence(model, store, sae, make_sae):
    with pytest.raises(SaeError, match="does not say which hook"):
        check(model, changed(sae, metadata={"hook_name": None}), store)
    with pytest.raises(SaeError, match="d_in 6, the model's residual stream has width 16"):
        check(model, make_sae(), store, hook=HOOK)
    with pytest.raises(SaeError, match=r"d_in 6, the store's blocks.1.hook_out has width 16"):
        check(None, make_sae(), store, hook=HOOK)
    with pytest.raises(ModelError, match="not a hook point"):
        check(model, sae, store, hook="blocks.9.hook_out")
    with pytest.raises(StoreError):
        check(None, sae, store, hook="blocks.9.hook_out")
    with pytest.raises(SettingsError, match="needs a language model to read text"):
        check(None, sae, "embedded")
    with pytest.raises(SettingsError, match="the text is a list; expected"):
        unwrap(check)(model, sae, [3])


def test_the_command_prints_the_table_and_its_exit_code_says_whether_it_fits(
    sae, tiny_store, tiny_model, tmp_path, capsys
):
    save(sae, tmp_path / "right")
    save(changed(sae, apply_b_dec_to_input=False), tmp_path / "wrong")
    common = ["--store", str(tiny_store), "--model", str(tiny_model), "--tokens", "500"]
    assert main(["check", str(tmp_path / "right"), *common]) == 0
    said = capsys.readouterr().out
    assert "Loaded right" in said and "as it was loaded" in said and "cross-entropy" in said
    assert main(["check", str(tmp_path / "wrong"), *common]) == 1
    assert "Not loaded right: it fits better with b_dec subtracted" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "right"), "--store", str(tiny_store), "--model", "none"]) == 0
    assert main(["check", str(tmp_path / "right"), "--text", "embedded"]) == 2
    assert "--model is required" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["My Texts/bok", "a b c", "快速的棕色狐狸。"])
def test_what_the_command_is_given_as_text_is_always_looked_up(sae, tiny_model, tmp_path, capsys, text):
    save(sae, tmp_path / "sae")
    assert main(["check", str(tmp_path / "sae"), "--model", str(tiny_model), "--text", text]) == 2
    assert "is neither an existing folder nor a hub id" in capsys.readouterr().err


def test_the_command_reads_a_file_whose_path_has_a_tilde_and_spaces(sae, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "My Texts").mkdir()
    (tmp_path / "My Texts/book.txt").write_text("A quick brown fox jumps over it. " * 60)
    save(sae, tmp_path / "sae")
    common = ["check", str(tmp_path / "sae"), "--model", str(tiny_model), "--tokens", "200"]
    main([*common, "--text", "~/My Texts/book.txt"])
    assert "on 217 activations at" in (said := capsys.readouterr().out)
    main([*common, "--text", str(tmp_path / "My Texts/book.txt")])
    assert capsys.readouterr().out == said


def test_a_store_and_what_a_store_has_no_use_for_are_refused_before_anything_is_loaded(tiny_store, capsys):
    for named in ("--store", "--text"):
        assert main(["check", "no-such-sae", named, str(tiny_store), "--context-size", "8"]) == 2
        assert "--context-size is of no use with a store, whose contexts are cut; leave" in capsys.readouterr().err
    assert main(["check", "no-such-sae", "--store", str(tiny_store), "--text", "embedded"]) == 2
    assert "--store and --text are both given; give one, rows or text" in capsys.readouterr().err
    assert main(["check", "no-such-sae", "--store", "embedded"]) == 2
    assert "store embedded does not exist" in capsys.readouterr().err


def test_contexts_longer_than_the_model_takes_are_an_error_and_the_usual_ones_are_cut_short(
    sae, tiny_model, tmp_path, capsys
):
    save(sae, tmp_path / "sae")
    common = ["check", str(tmp_path / "sae"), "--model", str(tiny_model), "--tokens", "300"]
    assert main([*common, "--context-size", "64"]) == 2
    assert "the model takes at most 32 tokens; give --context-size 32" in capsys.readouterr().err
    assert main(common) == 0


def test_the_model_is_that_of_the_commit_that_the_store_records(sae, tiny_store, tmp_path, monkeypatch):
    save(sae, tmp_path / "sae")
    recorded, asked = sae_lm.open_store(tiny_store), {}
    recorded.manifest.recipe.model["revision"] = "f" * 40

    def load_model(name, **options):
        asked.update(options, name=name)
        raise ModelError("no model")

    monkeypatch.setattr("sae_lm.commands.check.open_store", lambda path: recorded)
    monkeypatch.setattr("sae_lm.lm.bridge.load_model", load_model)
    main(["check", str(tmp_path / "sae"), "--store", str(tiny_store), "--model", "owner/tiny"])
    assert (asked["name"], asked["revision"]) == ("owner/tiny", "f" * 40)


def test_a_notebook_shows_a_table_with_text_from_files_escaped(store, sae):
    hostile = changed(sae)
    hostile.provenance = ["<script>alert(1)</script>"]
    html = check(None, hostile, store, tokens=300)._repr_html_()
    assert "<table>" in html and "&lt;script&gt;" in html and "<script>" not in html
    assert json.dumps(html)
