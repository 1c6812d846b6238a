"""sae_lm.sae.load and .formats.saelens: what is written is read again, and damage is named."""

import json
import re
from fractions import Fraction
from inspect import unwrap

import numpy as np
import pytest
import torch
from foreign_saes import FOREIGN, saelens_standard
from sae_formulas import D, K, M, inputs
from safetensors.torch import load_file, save_file

import sae_lm
from sae_lm.commands.verify import verify
from sae_lm.errors import SaeError
from sae_lm.sae.formats.saelens import CONFIG, WEIGHTS, check, save


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
def test_a_saved_sae_loads_with_equal_outputs_and_metadata(make_sae, tmp_path, architecture):
    sae = make_sae(architecture, penalty="max_cos", seed=3)
    save(sae, tmp_path / "sae")
    loaded = sae_lm.load(tmp_path / "sae")
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded(x), sae(x))
    assert loaded.config.metadata["penalty"] == "max_cos" and loaded.config.k == sae.config.k
    assert verify(tmp_path / "sae") == []
    assert sorted(path.name for path in (tmp_path / "sae").iterdir()) == [CONFIG, WEIGHTS]


def test_a_topk_sae_ranked_by_decoder_norm_is_folded_on_loading(make_sae, tmp_path):
    sae = make_sae(unit=False)
    save(sae, tmp_path / "sae")
    edit(tmp_path / "sae", rescale_acts_by_decoder_norm=True)
    loaded = sae_lm.load(tmp_path / "sae")
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    norm = sae.W_dec.norm(dim=1)
    scaled = sae.pre_activations(x) * norm
    values, index = scaled.topk(3, dim=1)
    expected = (torch.zeros_like(scaled).scatter(1, index, values.relu()) / norm) @ sae.W_dec + sae.b_dec
    torch.testing.assert_close(loaded(x), expected)


CENTRED = {"center_writing_weights": True}


@pytest.mark.parametrize("recorded", [None, "blocks.1.z_of_old", "blocks.1.attn.hook_z"])
def test_centring_goes_by_the_hook_that_is_given(make_sae, tmp_path, recorded):
    for name, hook in (("told", "blocks.1.hook_resid_post"), ("given", recorded)):
        sae = make_sae("standard", hook_name=hook, model_name="gpt2", model_from_pretrained_kwargs=CENTRED)
        save(sae, tmp_path / name)
    told, given = sae_lm.load(tmp_path / "told"), sae_lm.load(tmp_path / "given", hook="blocks.1.hook_out")
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    assert told.config.centred_input and given.config.centred_input
    assert torch.equal(given.encode(x), told.encode(x))
    assert given.config.metadata["hook_name"] == told.config.metadata["hook_name"] == "blocks.1.hook_out"
    assert given.config.metadata.get("original_hook_name") == recorded
    save(given, tmp_path / "again")
    assert torch.equal(sae_lm.load(tmp_path / "again")(x), told(x))


def test_a_given_hook_beside_the_residual_stream_is_not_centred(make_sae, tmp_path):
    sae = make_sae("standard", hook_name="blocks.1.hook_out", model_name="gpt2", model_from_pretrained_kwargs=CENTRED)
    save(sae, tmp_path / "sae")
    given = sae_lm.load(tmp_path / "sae", hook="blocks.1.mlp.hook_post")
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    assert not given.config.centred_input and torch.equal(given(x), sae(x))
    assert "hook blocks.1.mlp.hook_post as given" in given.provenance
    assert not any("from cfg.json" in note or "input centred" in note for note in given.provenance)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: (d / CONFIG).unlink(), "has no cfg.json"),
        (lambda d: (d / WEIGHTS).unlink(), "the SAE is damaged"),
        (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-9]), "the SAE is damaged"),
        (lambda d: edit(d, d_in=7), r"W_enc has shape \(6, 10\), the configuration says \(7, 10\)"),
        (lambda d: edit(d, normalize_activations="covariance_whitening"), "normalize_activations is 'covariance_w"),
        (lambda d: edit(d, k=11), "k is 11"),
        (lambda d: edit(d, k="three"), "k is 'three', expected a whole number"),
        (lambda d: (d / CONFIG).write_text("[]"), "JSON list"),
        (lambda d: edit(d, metadata="x"), "metadata is a str"),
        (lambda d: edit(d, activation_fn_str="tanh-relu"), "only relu and topk are read"),
        (lambda d: edit(d, d_in=-1), "d_in is -1, expected a whole number"),
        (lambda d: edit(d, d_sae=True), "d_sae is True, expected a whole number"),
        (lambda d: edit(d, k=2.5), "k is 2.5, expected a whole number"),
        (lambda d: poison(d), "W_dec holds NaN"),
        (lambda d: add(d, scaling_factor=torch.full((3,), 2.0)), r"scaling_factor has shape \(3,\), the .* \(10,\)"),
        (lambda d: add(d, finetuning_scaling_factor=torch.ones(1, 10)), r"ing_factor has shape \(1, 10\), the"),
    ],
)
def test_a_directory_that_is_not_whole_is_refused_with_a_reason(make_sae, tmp_path, damage, says):
    save(make_sae(), tmp_path / "sae")
    damage(tmp_path / "sae")
    with pytest.raises(SaeError, match=says):
        sae_lm.load(tmp_path / "sae")


def test_a_saved_topk_sae_with_uneven_decoder_rows_loads_as_what_it_was(make_sae, tmp_path):
    sae = make_sae(unit=False)
    save(sae, tmp_path / "sae")
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    loaded = sae_lm.load(tmp_path / "sae")
    assert torch.equal(loaded.encode(x), sae.encode(x)) and torch.equal(loaded(x), sae(x))


def edit(directory, **changes):
    """As another program would write it: without our checksum of the configuration."""
    config = json.loads((directory / CONFIG).read_text())
    config["metadata"].pop("config_sha256", None)
    (directory / CONFIG).write_text(json.dumps({**config, **changes}))


def poison(directory):
    weights = load_file(directory / WEIGHTS)
    weights["W_dec"][2, 3] = float("nan")
    add(directory, **weights)


def add(directory, **tensors):
    save_file(load_file(directory / WEIGHTS) | tensors, directory / WEIGHTS)
    edit(directory, metadata={})  # no checksum: as another program would write it


def test_verify_finds_a_flipped_bit_in_the_weights(make_sae, tmp_path):
    save(make_sae(), tmp_path / "sae")
    content = bytearray((tmp_path / "sae" / WEIGHTS).read_bytes())
    content[-3] ^= 4
    (tmp_path / "sae" / WEIGHTS).write_bytes(bytes(content))
    assert verify(tmp_path / "sae") == [f"{WEIGHTS}: content does not match its checksum"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: (d / WEIGHTS).unlink(), f"{WEIGHTS}: missing"),
        (lambda d: edit(d, d_in=7), "W_enc has shape (6, 10), the configuration says (7, 10)"),
        (lambda d: (d / CONFIG).write_text("[]"), "JSON list"),
    ],
)
def test_verify_finds_what_loading_would_refuse(make_sae, tmp_path, damage, says):
    save(make_sae(), tmp_path / "sae")
    damage(tmp_path / "sae")
    (line,) = verify(tmp_path / "sae")
    assert says in line
    with pytest.raises(SaeError):
        sae_lm.load(tmp_path / "sae")


@pytest.mark.parametrize(
    "kind", [{"architecture": "temporal"}, {"activation_fn_str": "tanh-relu"}, {"normalize_activations": "x"}]
)
def test_an_sae_of_a_kind_that_is_not_read_here_is_not_called_damaged(make_sae, tmp_path, kind):
    save(make_sae(), tmp_path / "sae")
    edit(tmp_path / "sae", **kind)
    assert verify(tmp_path / "sae") == []
    with pytest.raises(SaeError, match="unknown|only relu and topk|normalize_activations"):
        sae_lm.load(tmp_path / "sae")


def test_verify_says_where_no_checksum_can_show_damage(make_sae, tmp_path):
    save(make_sae(), tmp_path / "sae")
    edit(tmp_path / "sae", metadata={})
    with pytest.raises(SaeError, match="records no checksum"):
        verify(tmp_path / "sae")


def test_a_name_that_is_nowhere_says_so(tmp_path):
    with pytest.raises(SaeError, match="not a directory"):
        sae_lm.load(tmp_path / "nothing")


def test_numbers_may_be_given_as_numpy_has_them(tmp_path):
    load = unwrap(sae_lm.load)  # without the tests' own check of annotations
    path, _ = FOREIGN["saelens topk"][0](tmp_path)
    save(load(path, "cpu", k=np.int64(2), hook=np.int64(3)), tmp_path / "again")
    assert sae_lm.load(tmp_path / "again", "cpu").config.k == 2
    path, _ = FOREIGN["saelens expected_average_only_in"][0](tmp_path)
    for scale in (np.float32(0.5), np.float64(0.5), np.int64(2), Fraction(1, 2)):
        assert torch.equal(load(path, input_scale=scale).W_enc, load(path, input_scale=float(scale)).W_enc)
    with pytest.raises(SaeError, match="input_scale is 10+.*, expected a number above 0 and below 1e.30"):
        load(path, input_scale=10**400)


@pytest.mark.parametrize("recorded", [{}, {"k": None}, {"k": 99}, {"k": "many"}])
def test_a_given_k_counts_whatever_a_topk_configuration_says(tmp_path, recorded):
    """Without one SAELens takes 100, which is more than this SAE has latents."""
    path, formula = FOREIGN["saelens topk"][0](tmp_path)
    config = json.loads((path / CONFIG).read_text())
    del config["k"]
    (path / CONFIG).write_text(json.dumps(config | recorded))
    with pytest.raises(SaeError, match="k is (100|99|'many')"):
        sae_lm.load(path, "cpu")
    sae, x = sae_lm.load(path, "cpu", k=K), inputs()
    torch.testing.assert_close(sae(x), formula(x)[1].float(), atol=1e-5, rtol=1e-5)
    assert any(sentence.startswith(f"k is {K} as given, cfg.json says ") for sentence in sae.provenance)
    with pytest.raises(SaeError, match=f"k is {M + 1}, .* needs 1 to {M}; give another k$"):
        sae_lm.load(path, "cpu", k=M + 1)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("saelens topk", "apply_b_dec_to_input"),
        ("saelens topk", "rescale_acts_by_decoder_norm"),
        ("saelens matryoshka checkpoint", "rescale_acts_by_decoder_norm"),
        ("llama_scope, W_E", "use_decoder_bias"),
        ("llama_scope, W_E", "apply_decoder_bias_to_pre_encoder"),
        ("llama_scope, W_E", "sparsity_include_decoder_norm"),
    ],
)
def test_true_and_false_are_not_read_out_of_anything_else_and_null_is_the_default(tmp_path, name, key):
    path, formula = FOREIGN[name][0](tmp_path)
    (file,) = path.glob("*.json")
    config, x = json.loads(file.read_text()), inputs()
    file.write_text(json.dumps(config | {key: None}))
    torch.testing.assert_close(sae_lm.load(path, "cpu")(x), formula(x)[1].float(), atol=2e-5, rtol=1e-5)
    for value in ("false", "true", 0, 1.0, [], {}):
        file.write_text(json.dumps(config | {key: value}))
        with pytest.raises(SaeError, match=f"{file.name}: {key} is {re.escape(repr(value))}, expected true or false"):
            sae_lm.load(path, "cpu")


@pytest.mark.parametrize(("says", "centred"), [(True, True), (False, False), (None, False), ("false", None)])
def test_an_activation_is_centred_by_true_alone(tmp_path, says, centred):
    path, _ = FOREIGN["saelens centred"][0](tmp_path)
    metadata = json.loads((path / CONFIG).read_text())["metadata"]
    edit(path, metadata=metadata | {"model_from_pretrained_kwargs": {"center_writing_weights": says}})
    if centred is not None:
        assert sae_lm.load(path, "cpu").config.centred_input == centred
        return
    with pytest.raises(SaeError, match="center_writing_weights is 'false', expected true or false"):
        sae_lm.load(path, "cpu")


def test_a_mistyped_directory_is_answered_with_what_is_there(make_sae, tmp_path):
    save(make_sae(), tmp_path / "max_cos_0.25-seed0")
    with pytest.raises(SaeError, match="holds max_cos_0.25-seed0"):
        sae_lm.load(tmp_path / "max_cos-seed0")
    with pytest.raises(SaeError, match="holds several; name one of max_cos_0.25-seed0"):
        sae_lm.load(tmp_path)


# --- of other programs


def test_decoding_without_the_activation_is_refused_where_it_was_normalised(tmp_path):
    for name in ("saelens layer_norm", "saelens constant_norm_rescale", "saelens centred", "openai topk"):
        path, _ = FOREIGN[name][0](tmp_path / name.replace(" ", "_"))
        sae, x = sae_lm.load(path, "cpu"), inputs()
        z = sae.encode(x)
        with pytest.raises(SaeError, match=r"decode\(z, x\)"):
            sae.decode(z)
        torch.testing.assert_close(sae.decode(z, x), sae(x))
    path, _ = saelens_standard(tmp_path)
    sae = sae_lm.load(path, "cpu")
    assert torch.equal(sae.decode(sae.encode(x)), sae(x))


def test_an_activation_of_norm_zero_stays_finite(tmp_path):
    for name in ("saelens layer_norm", "saelens constant_norm_rescale"):
        path, _ = FOREIGN[name][0](tmp_path / name.replace(" ", "_"))
        assert torch.isfinite(sae_lm.load(path, "cpu")(torch.zeros(2, D))).all()


def test_an_axis_of_heads_is_flattened_and_comes_back(tmp_path):
    path, _ = FOREIGN["saelens hook_z"][0](tmp_path)
    sae, x = sae_lm.load(path, "cpu"), inputs()
    heads = x.view(20, 10, 2, D // 2)
    assert torch.equal(sae(heads), sae(x).view_as(heads)) and sae.encode(heads).shape == (20, 10, M)
    path, _ = saelens_standard(tmp_path / "other")
    with pytest.raises(SaeError, match="width 3"):
        sae_lm.load(path, "cpu").encode(heads)


def test_half_precision_is_folded_and_used_in_float32(tmp_path):
    path, _ = FOREIGN["llama_scope, hyperparams.json"][0](tmp_path)
    (file,) = path.rglob("*.safetensors")
    save_file({key: value.bfloat16() for key, value in load_file(file).items()}, file)
    sae = sae_lm.load(path, "cpu")
    assert sae.W_enc.dtype == torch.float32 and "stored as bfloat16, used as float32" in sae.provenance


def saved_by_saelens(source, target, **tensors):
    """As SAELens saves what it has loaded: the architecture last, our metadata kept, its own training version added."""
    config = json.loads((source / CONFIG).read_text())
    config["metadata"]["sae_lens_training_version"] = "6.54.12"
    config["architecture"] = config.pop("architecture")
    target.mkdir()
    (target / CONFIG).write_text(json.dumps(config))
    save_file(load_file(source / WEIGHTS) | tensors, target / WEIGHTS)
    return target


def test_what_another_program_saved_anew_unchanged_is_whole_and_keeps_what_was_measured(make_sae, tmp_path):
    save(make_sae(largest_activations=[1.0] * 10), tmp_path / "sae")
    copy = saved_by_saelens(tmp_path / "sae", tmp_path / "copy")
    assert verify(copy) == []
    loaded = sae_lm.load(copy)
    assert loaded.config.metadata["largest_activations"] == [1.0] * 10
    assert any("written anew by another program" in said and "as they were" in said for said in loaded.provenance)
    save(loaded, tmp_path / "again")
    assert verify(tmp_path / "again") == []


def test_what_another_program_changed_is_loaded_without_what_held_for_the_old_weights(make_sae, tmp_path):
    save(make_sae(largest_activations=[1.0] * 10), tmp_path / "sae")
    b_dec = load_file(tmp_path / "sae" / WEIGHTS)["b_dec"] + 0.01
    copy = saved_by_saelens(tmp_path / "sae", tmp_path / "copy", b_dec=b_dec)
    loaded = sae_lm.load(copy)
    assert torch.equal(loaded.b_dec, b_dec) and check(copy)[1].d_in == 6
    assert not {"largest_activations", "weights_sha256", "config_sha256"} & set(loaded.config.metadata)
    assert any("the weights are others: left out weights_sha256, largest_act" in said for said in loaded.provenance)
    with pytest.raises(SaeError, match="was changed and saved by another program, .* nothing to verify"):
        verify(copy)
    (copy / WEIGHTS).unlink()
    assert verify(copy) == [f"{WEIGHTS}: missing"]
    save_file(load_file(tmp_path / "sae" / WEIGHTS) | {"b_dec": b_dec}, tmp_path / "sae" / WEIGHTS)
    with pytest.raises(SaeError, match="content does not match its checksum; the SAE is damaged"):
        sae_lm.load(tmp_path / "sae")  # cfg.json is still ours
