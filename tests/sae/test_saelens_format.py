"""Our SAE directories in SAELens and its in ours, with equal outputs. Runs where sae-lens is installed.

sae-lens needs transformer-lens < 4, so this file has its own environment in `.ci/run`; elsewhere it is skipped.
"""

import json

import pytest
import torch

import sae_lm
from sae_lm.commands.verify import verify
from sae_lm.penalties.arms import parse_arm
from sae_lm.sae.formats.saelens import save

pytestmark = pytest.mark.transformer_lens_3

sae_lens = pytest.importorskip("sae_lens", reason="needs sae-lens, which needs transformer-lens < 4")


@pytest.fixture
def x():
    return torch.randn(50, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
def test_saelens_loads_our_directory_unchanged_with_equal_outputs_and_our_metadata(make_sae, tmp_path, x, architecture):
    ours = make_sae(architecture, penalty="max_cos", coefficient=0.25, model_name="embedded")
    save(ours, tmp_path / "sae")
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "sae"))
    torch.testing.assert_close(theirs.encode(x), ours.encode(x))
    torch.testing.assert_close(theirs(x), ours(x))
    assert theirs.cfg.architecture() == architecture
    assert theirs.cfg.metadata.hook_name == "blocks.1.hook_out"
    assert theirs.cfg.metadata.penalty == "max_cos" and theirs.cfg.metadata.coefficient == 0.25


def test_saelens_can_fold_the_decoder_norms_of_our_topk(make_sae, tmp_path, x):
    ours = make_sae("topk")
    save(ours, tmp_path / "sae")
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "sae"))
    theirs.fold_W_dec_norm()
    torch.testing.assert_close(theirs(x), ours(x))


@pytest.mark.parametrize("change", [0.0, 0.01])
def test_an_sae_of_ours_that_saelens_loads_changes_and_saves_is_read_again(make_sae, tmp_path, x, change):
    save(make_sae("standard", largest_activations=[1.0] * 10), tmp_path / "sae")
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "sae"))
    with torch.no_grad():
        theirs.b_dec += change
    theirs.save_model(str(tmp_path / "changed"))
    ours = sae_lm.load(tmp_path / "changed", device="cpu")
    torch.testing.assert_close(ours(x), theirs(x))
    assert ("largest_activations" in ours.config.metadata) == (not change)
    if not change:
        assert verify(tmp_path / "changed") == []


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_we_load_what_saelens_saves_with_equal_outputs(tmp_path, x, architecture, apply_b_dec):
    from sae_lens.saes import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

    kinds = {
        "standard": (StandardSAE, StandardSAEConfig, {}),
        "topk": (TopKSAE, TopKSAEConfig, {"k": 3, "rescale_acts_by_decoder_norm": True}),
        "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    }
    cls, config, extra = kinds[architecture]
    theirs = cls(config(d_in=6, d_sae=10, apply_b_dec_to_input=apply_b_dec, **extra))
    draw = torch.Generator().manual_seed(2)
    for name, parameter in theirs.named_parameters():
        values = torch.randn(parameter.shape, generator=draw)
        parameter.data = values.abs() if name == "threshold" else values
    theirs.save_model(str(tmp_path / "sae"))
    ours = sae_lm.load(tmp_path / "sae")
    torch.testing.assert_close(ours(x), theirs(x))


def equal_in_both(folder, rows):
    """The SAE of a folder as we load it and as SAELens does, with equal codes and outputs."""
    ours, theirs = sae_lm.load(folder), sae_lens.SAE.load_from_disk(str(folder))
    torch.testing.assert_close(theirs(rows), ours(rows))
    torch.testing.assert_close(theirs.encode(rows), ours.encode(rows))
    return ours, theirs


@pytest.mark.parametrize(
    ("arch", "saved_as"),
    [
        ("relu", "standard"),
        ("topk", "topk"),
        ("batchtopk", "jumprelu"),
        ("jumprelu", "jumprelu"),
        ("matryoshka", "jumprelu"),
    ],
)
def test_a_trained_run_of_every_architecture_loads_in_saelens_with_equal_outputs(tiny_store, tmp_path, arch, saved_as):
    from sae_lm.commands.train import train
    from sae_lm.settings import TrainSettings

    settings = TrainSettings(
        store=tiny_store,
        hook="blocks.1.hook_out",
        d_sae=48,
        k=4,
        arch=arch,
        arms="max_cos",
        seeds=1,
        tokens="6k",
        batch_size=64,
        out=tmp_path,
    )
    folder = train(settings) / "max_cos_0.25-seed0"
    rows = sae_lm.open_store(tiny_store).rows("blocks.1.hook_out")
    ours, theirs = equal_in_both(folder, rows)
    z = ours.encode(rows)
    assert theirs.cfg.architecture() == ours.config.architecture == saved_as
    assert theirs.cfg.metadata.training_architecture == arch
    assert 0.5 < float((z > 0).sum(1).float().mean()) < 8  # 4 asked for, after 94 steps from random weights


SAVED = {
    "none@arch=matryoshka@balance=0.3": "jumprelu",
    "none@arch=matryoshka@widths=8+48": "jumprelu",
    "none@arch=matryoshka@prefixes=2": "jumprelu",
    "none@arch=matryoshka@fvu=0.01": "jumprelu",
    "none@decoder=0.8": "topk",
    "none@decoder=frozen": "topk",
    "none@encoder=frozen": "topk",
    "align": "topk",
    "c2r:0.5@arch=relu": "standard",
    "silent@arch=batchtopk": "jumprelu",
    "coactive@anchored@arch=jumprelu": "jumprelu",
}
"""Arm -> the architecture that SAELens reads."""


def test_nested_held_and_penalised_arms_load_in_saelens_with_equal_outputs(tiny_store, tmp_path):
    from sae_lm.commands.train import train
    from sae_lm.settings import TrainSettings

    arms = {parse_arm(text).name: saved_as for text, saved_as in SAVED.items()}
    out = train(
        TrainSettings(
            store=tiny_store,
            hook="blocks.1.hook_out",
            d_sae=48,
            k=4,
            arms=",".join(SAVED),
            seeds=1,
            tokens="6k",
            batch_size=64,
            out=tmp_path,
        )
    )
    rows = sae_lm.open_store(tiny_store).rows("blocks.1.hook_out")
    metadata = {path: json.loads(path.read_text())["metadata"] for path in out.glob("*-seed0/cfg.json")}
    assert {found["arm"] for found in metadata.values()} == set(arms)
    for path, found in metadata.items():
        _, theirs = equal_in_both(path.parent, rows)
        assert theirs.cfg.architecture() == arms[found["arm"]], found["arm"]


def test_what_an_sae_found_of_known_features_is_scored_as_synthsaebench_scores_it():
    from sae_lens.synthetic.evals import (
        compute_classification_metrics,
        feature_uniqueness,
        mean_correlation_coefficient,
    )

    from sae_lm.synthetic.scores import CodedInputs, KnownInputs, score

    draw = torch.Generator().manual_seed(3)
    features = torch.nn.functional.normalize(torch.randn(7, 6, generator=draw), dim=1)
    W_dec = torch.nn.functional.normalize(torch.randn(9, 6, generator=draw), dim=1)
    sizes = torch.rand(200, 7, generator=draw) * (torch.rand(200, 7, generator=draw) < 0.3)
    codes = (sizes @ features @ W_dec.T - 0.4).relu()
    codes[:, 2] = 0  # a dead latent: they count its F1 as 0, we leave it out
    x = sizes @ features
    known = KnownInputs(x, sizes, torch.full((200,), 1 / 200), features, [(0, 1)])
    ours = score(known, CodedInputs(codes, x - codes @ W_dec, W_dec, W_dec))
    theirs = compute_classification_metrics(codes, sizes, W_dec, features)
    alive = (codes > 0).any(0).double().mean().item()
    assert alive < 1
    assert ours.mcc == pytest.approx(mean_correlation_coefficient(W_dec, features), abs=1e-6)
    assert ours.uniqueness == pytest.approx(feature_uniqueness(W_dec, features))
    assert ours.f1 * alive == pytest.approx(theirs.f1_score, abs=1e-6)
