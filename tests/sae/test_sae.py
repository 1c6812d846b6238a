"""An SAE as it is used: encode and decode, directory, splice into a model."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import sae_lm
from sae_lm.commands.verify import verify
from sae_lm.errors import SaeError
from sae_lm.sae.formats.saelens import CONFIG, WEIGHTS, save
from sae_lm.sae.model import SAE, SaeConfig


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
    save(sae, tmp_path / "sae")  # cfg.json says rescale_acts_by_decoder_norm
    loaded = sae_lm.load(tmp_path / "sae")
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    norm = sae.W_dec.norm(dim=1)
    scaled = sae.pre_activations(x) * norm
    values, index = scaled.topk(3, dim=1)
    expected = (torch.zeros_like(scaled).scatter(1, index, values.relu()) / norm) @ sae.W_dec + sae.b_dec
    torch.testing.assert_close(loaded(x), expected)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: (d / CONFIG).unlink(), "has no cfg.json"),
        (lambda d: (d / WEIGHTS).unlink(), "the SAE is damaged"),
        (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-9]), "the SAE is damaged"),
        (lambda d: edit(d, d_in=7), r"W_enc has shape \(6, 10\), the configuration says \(7, 10\)"),
        (lambda d: edit(d, architecture="gated"), "architecture 'gated' is unknown"),
        (lambda d: edit(d, normalize_activations="layer_norm"), "normalize_activations is 'layer_norm'"),
        (lambda d: edit(d, k=11), "k is 11"),
        (lambda d: edit(d, k="three"), "k is 'three', expected a whole number"),
        (lambda d: (d / CONFIG).write_text("[]"), "JSON list"),
        (lambda d: edit(d, metadata="x"), "metadata is a str"),
        (lambda d: edit(d, activation_fn_str="topk"), "before 6"),
        (lambda d: poison(d), "W_dec holds NaN"),
    ],
)
def test_a_directory_that_is_not_whole_is_refused_with_a_reason(make_sae, tmp_path, damage, says):
    save(make_sae(), tmp_path / "sae")
    damage(tmp_path / "sae")
    with pytest.raises(SaeError, match=says):
        sae_lm.load(tmp_path / "sae")


def edit(directory, **changes):
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**config, **changes}))


def poison(directory):
    weights = load_file(directory / WEIGHTS)
    weights["W_dec"][2, 3] = float("nan")
    save_file(weights, directory / WEIGHTS)
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
        (lambda d: edit(d, architecture="gated"), "architecture 'gated' is unknown"),
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


def test_verify_says_where_no_checksum_can_show_damage(make_sae, tmp_path):
    save(make_sae(), tmp_path / "sae")
    edit(tmp_path / "sae", metadata={})
    with pytest.raises(SaeError, match="records no checksum"):
        verify(tmp_path / "sae")


def test_a_name_that_is_nowhere_says_so(tmp_path):
    with pytest.raises(SaeError, match="not a directory"):
        sae_lm.load(tmp_path / "nothing")


def test_a_mistyped_directory_is_answered_with_what_is_there(make_sae, tmp_path):
    save(make_sae(), tmp_path / "max_cos_0.25-seed0")
    with pytest.raises(SaeError, match="holds max_cos_0.25-seed0"):
        sae_lm.load(tmp_path / "max_cos-seed0")
    with pytest.raises(SaeError, match="holds several; name one of max_cos_0.25-seed0"):
        sae_lm.load(tmp_path)


def test_input_of_another_width_is_refused(make_sae):
    with pytest.raises(SaeError, match="width 5, this SAE was trained on width 6"):
        make_sae().encode(torch.zeros(2, 5))


@pytest.fixture(scope="module")
def model(tiny_model):
    return sae_lm.load_model(str(tiny_model))


IDS = torch.tensor([[0, 5, 9, 33, 70, 12], [0, 8, 8, 250, 3, 44]])


def residual(model, name="blocks.1.hook_out"):
    return model.run_with_cache(IDS, names_filter=name)[1][name]


def test_a_splice_gives_the_logits_of_the_model_with_the_reconstruction(model, make_sae):
    sae = make_sae(d_in=16, d_sae=32)
    expected = model.run_with_hooks(IDS, fwd_hooks=[("blocks.1.hook_out", lambda tensor, hook: sae(tensor))])
    clean = model(IDS)
    with sae_lm.splice(model, sae):
        torch.testing.assert_close(model(IDS), expected)
    assert not torch.allclose(clean, expected)
    assert torch.equal(model(IDS), clean)  # nothing stays behind


def test_positions_in_keep_are_left_alone(model, make_sae):
    sae = make_sae(d_in=16, d_sae=32)
    clean = residual(model)
    with sae_lm.splice(model, sae, keep=IDS == 0):
        after = residual(model, "blocks.2.hook_in")
    torch.testing.assert_close(after[:, 0], clean[:, 0])
    torch.testing.assert_close(after[:, 1:], sae(clean)[:, 1:])
    with pytest.raises(SaeError, match="keep has shape"), sae_lm.splice(model, sae, keep=torch.zeros(1, 1) > 0):
        model(IDS)


def test_with_the_error_term_an_unedited_splice_changes_nothing_and_an_edit_moves_by_its_decoder_row(model, make_sae):
    sae = make_sae("standard", d_in=16, d_sae=32)
    clean = residual(model)
    latent = int(sae.encode(clean).sum((0, 1)).argmax())

    def ablate(tensor, hook):
        tensor[..., latent] = 0
        return tensor

    with sae_lm.splice(model, sae, error_term=True) as spliced:
        torch.testing.assert_close(residual(model, "blocks.2.hook_in"), clean, atol=1e-5, rtol=1e-5)
        with spliced.hooks(fwd_hooks=[("hook_sae_acts_post", ablate)]):
            edited = residual(model, "blocks.2.hook_in")
    moved = -sae.encode(clean)[..., latent, None] * sae.W_dec[latent]
    torch.testing.assert_close(edited - clean, moved, atol=1e-5, rtol=1e-4)


def test_latents_can_be_cached_at_their_hook_points(model, make_sae):
    sae = make_sae(d_in=16, d_sae=32)
    seen = {}
    with sae_lm.splice(model, sae) as spliced:
        names = [f"hook_sae_{part}" for part in ("input", "acts_pre", "acts_post", "recons")]
        keep = [(name, lambda tensor, hook: seen.__setitem__(hook.name, tensor)) for name in names]
        with spliced.hooks(fwd_hooks=keep):
            model(IDS)
    assert sorted(seen) == sorted(names)
    torch.testing.assert_close(seen["hook_sae_acts_post"], sae.encode(seen["hook_sae_input"]))


def test_generation_works_inside_a_splice(model, make_sae):
    with sae_lm.splice(model, make_sae(d_in=16, d_sae=32)):
        out = model.generate(IDS[:1], max_new_tokens=4, do_sample=False, verbose=False, return_type="tokens")
    assert out.shape == (1, 10)


def test_an_sae_of_another_width_or_without_a_hook_is_refused(model, make_sae):
    with (
        pytest.raises(SaeError, match="d_in 6, the model's residual stream has width 16"),
        sae_lm.splice(model, make_sae()),
    ):
        pass
    sae = make_sae(d_in=16)
    bare = SAE(SaeConfig(architecture="topk", d_in=16, d_sae=10, k=3), dict(sae.named_parameters()))
    with pytest.raises(SaeError, match="which hook"), sae_lm.splice(model, bare):
        pass
