"""sae_lm.training.start: control arms hold rows where they started, exactly, in every architecture, and say so."""

import json

import pytest
import torch
from recipes import training_recipe
from reference import held_near
from safetensors.torch import load_file

import sae_lm
from sae_lm.commands.train import train
from sae_lm.errors import SettingsError
from sae_lm.penalties.arms import parse_arm
from sae_lm.settings import TrainSettings
from sae_lm.training.start import first_weights, keep_near
from sae_lm.training.trainer import ArmTraining

ARCHITECTURES = ["relu", "topk", "batchtopk", "jumprelu", "matryoshka"]


def units(m, d, seed, dtype=torch.float32):
    rows = torch.randn(m, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return rows / rows.norm(dim=1, keepdim=True)


def batches(steps):
    draw = torch.Generator().manual_seed(7)
    return [torch.randn(16, 8, generator=draw) / 3 for _ in range(steps)]


def made(text, **changes):
    settings = {"lr": 3e-2, "steps": 30, "dead_after": 64, "matmul": "float32", **changes}
    return ArmTraining(parse_arm(text), 0, training_recipe(**settings), torch.zeros(8), "cpu")


def trained(text, steps=30, **changes):
    run = made(text, **changes)
    for step, x in enumerate(batches(steps)):
        run.step(x, step)
    return run


@pytest.mark.parametrize("cosine", [0.999, 0.8, 0.3, 0.01])
def test_rows_are_brought_to_the_nearest_that_is_near_enough_and_others_keep_their_bits(cosine):
    start = units(1200, 6, 0, torch.float64)  # three pieces, one short
    rows = torch.cat([units(600, 6, 1, torch.float64), start[600:] + 0.05 * units(600, 6, 2, torch.float64)])
    rows = rows / rows.norm(dim=1, keepdim=True)
    kept = rows.clone()
    keep_near(kept, start, cosine)
    expected = torch.stack([held_near(*pair, cosine) for pair in zip(rows, start, strict=True)])
    torch.testing.assert_close(kept, expected, atol=1e-9, rtol=0)
    near = (rows * start).sum(1) >= cosine
    assert near.any() and not near.all()
    assert torch.equal(kept[near], rows[near])


def test_in_single_precision_the_cosine_holds_to_rounding_and_an_opposite_row_goes_home():
    start, rows = units(2000, 64, 0), units(2000, 64, 1)
    rows[0] = -start[0]
    keep_near(rows, start, 0.8)
    assert float((rows.double() * start.double()).sum(1).min()) > 0.8 - 1e-6
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2000))
    assert torch.equal(rows[0], start[0])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_frozen_decoder_or_encoder_stays_to_the_bit_and_all_else_is_trained(arch):
    for text, name, other in (
        ("none@decoder=frozen", "W_dec", "encoder"),
        ("none@encoder=frozen", "encoder", "W_dec"),
    ):
        run = trained(text, arch=arch)
        first = first_weights(arch, 0, 24, torch.zeros(8), "cpu")
        assert torch.equal(getattr(run.weights, name), getattr(first, name))
        assert not torch.allclose(getattr(run.weights, other), getattr(first, other), atol=1e-2)
        assert run.weights.b_enc.any() and run.weights.b_dec.any()
        assert not any(f".{name}" in key for key in run.state())
        assert run.finish(1.0, {}).W_dec.shape == (24, 8)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_decoder_rows_are_near_enough_after_every_step_and_some_at_the_edge(arch):
    run = made("none@decoder=0.9", arch=arch, lr=0.05)
    first, free = run.W_dec.detach().clone(), trained("none", arch=arch, lr=0.05)
    for step, x in enumerate(batches(30)):
        run.step(x, step)
        cosines = (run.W_dec.detach().double() * first.double()).sum(1)
        assert float(cosines.min()) > 0.9 - 1e-6
    torch.testing.assert_close(run.W_dec.norm(dim=1), torch.ones(24))
    assert ((cosines - 0.9).abs() < 1e-6).any()
    assert float((free.W_dec.detach() * first).sum(1).min()) < 0.88  # what would have happened


def test_a_decoder_that_never_leaves_its_cap_is_trained_as_without_one():
    assert torch.equal(trained("none@decoder=0.01", lr=1e-3).W_dec, trained("none", lr=1e-3).W_dec)


@pytest.mark.parametrize("text", ["none@decoder=0.9", "none@decoder=frozen", "none@encoder=frozen",
                                  "max_cos:3@decoder=0.9@encoder=frozen", "sq_cos@on=encoder@decoder=frozen",
                                  "c2r:3@decoder=0.9", "align@decoder=0.9"])  # fmt: skip
def test_a_held_arm_continues_from_its_state_bit_for_bit(text):
    whole, first = trained(text), trained(text, steps=11)
    second = made(text)
    second.restore({name: value.clone() for name, value in first.state().items()})
    for step, x in list(enumerate(batches(30)))[11:]:
        second.step(x, step)
    theirs = whole.state()
    assert theirs.keys() == second.state().keys()
    assert all(torch.equal(value, theirs[name]) for name, value in second.state().items())
    assert torch.equal(whole.W_dec, second.W_dec) and torch.equal(whole.W_enc, second.W_enc)


def test_a_frozen_decoders_gradient_is_not_in_the_norm_that_is_clipped(monkeypatch):
    monkeypatch.setattr("sae_lm.training.optimizer.CLIP_NORM", 0.05)
    run, scale = made("none@decoder=frozen", optimizer="adam"), []
    run.optimizer.adam.register_step_pre_hook(lambda optimizer, *_: scale.append(float(optimizer.grad_scale) * 0.05))
    norms = []
    run.optimizer.adam.register_step_pre_hook(
        lambda *_: norms.append(float(torch.stack([w.grad.norm() for w in run.named.values()]).norm()))
    )
    for step, x in enumerate(batches(3)):
        run.step(x, step)
    assert scale == pytest.approx(norms) and "W_dec" not in run.named


@pytest.fixture
def settings(tiny_store, tmp_path):
    def make(arms, **changes):
        values = {"store": tiny_store, "hook": "blocks.1.hook_out", "d_sae": 64, "k": 4, "seeds": 1, "tokens": "2k",
                  "batch_size": 100, "lr": 1e-2, "out": tmp_path / "runs", "arms": arms}  # fmt: skip
        return TrainSettings(**{**values, **changes})

    return make


def test_a_saved_control_is_an_sae_like_others_whose_metadata_say_what_was_held(settings):
    runs = train(settings("none,none@decoder=frozen,none@decoder=0.95,max_cos@encoder=frozen@arch=batchtopk"))
    start = first_weights("topk", 0, 64, torch.zeros(16), "cpu").W_dec
    held = {}
    for folder in sorted(runs.glob("*-seed0")):
        metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
        held[metadata["arm"]] = metadata.get("held")
        weights = load_file(folder / "sae_weights.safetensors")
        torch.testing.assert_close(weights["W_dec"].norm(dim=1), torch.ones(64))
        assert sae_lm.load(folder).encode(torch.randn(3, 16)).shape == (3, 64)
        cosine = float((weights["W_dec"] * start).sum(1).min())
        assert torch.equal(weights["W_dec"], start) is (metadata["arm"] == "none@decoder=frozen")
        assert (cosine > 0.95 - 1e-6) is ("decoder" in metadata["arm"])
        assert torch.equal(weights["W_enc"], start.T) is ("encoder" in metadata["arm"])
    assert held == {
        "none": None,
        "none@decoder=frozen": {"decoder": "frozen"},
        "none@decoder=0.95": {"decoder": 0.95},
        "max_cos:0.25@arch=batchtopk@encoder=frozen": {"encoder": "frozen"},
    }


def test_what_would_move_held_rows_or_penalise_frozen_ones_is_refused(settings):
    for arms in ("none,none@decoder=0.8", "none@encoder=frozen"):
        with pytest.raises(SettingsError, match="resample_every is 5, which gives dead latents new .* holds them at"):
            train(settings(arms, resample_every=5))
    for one in ("encoder", "decoder"):
        with pytest.raises(SettingsError, match=f"has a penalty on a frozen {one}, which it cannot move"):
            train(settings(f"max_cos@{one}=frozen", penalty_on=one))


def test_a_penalty_on_encoders_is_on_no_frozen_decoder(settings):
    out = train(settings("none,max_cos:0.25@decoder=frozen", penalty_on="encoder"))
    assert (out / "max_cos_0.25@decoder=frozen-seed0").is_dir()
