"""This project's penalties inside SAELens' own training loop, and what is said where SAELens is missing."""

import importlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lm.errors import SettingsError
from sae_lm.penalties.arms import PENALTIES
from sae_lm.sae.load import load
from sae_lm.sae.sparse import Codes

pytestmark = pytest.mark.transformer_lens_3
HERE = find_spec("sae_lens") is not None
needs_saelens = pytest.mark.skipif(not HERE, reason="needs sae-lens")
D_IN, D_SAE = 8, 24
ARMS = ["abs_cos:2", "sq_cos", "max_cos:0.5@margin=0.1", "max_cos@anchored", "coactive", "freq_cos", "silent", "align"]


@pytest.mark.skipif(HERE, reason="sae-lens is installed here")
def test_where_saelens_is_missing_a_sentence_says_what_to_install() -> None:
    with pytest.raises(ImportError, match=r"needs SAELens, which is not installed here; run pip install 'sae-lens"):
        importlib.import_module("sae_lm.interop.saelens")


@pytest.fixture
def plugin() -> Any:
    pytest.importorskip("sae_lens")
    return importlib.import_module("sae_lm.interop.saelens")


def batches(seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    world = torch.nn.functional.normalize(torch.randn(16, D_IN, generator=generator), dim=1)
    while True:
        yield (torch.rand(64, 16, generator=generator) * (torch.rand(64, 16, generator=generator) < 0.15)) @ world


def made(plugin: Any, kind: str, arm: str) -> Any:
    from sae_lens.registry import get_sae_training_class

    trained, config = get_sae_training_class(f"sae_lm_{kind}")
    options = {"k": 3} if "topk" in kind else {}
    options |= {"matryoshka_widths": [8, D_SAE]} if kind.startswith("matryoshka") else {}
    torch.manual_seed(0)
    return trained(config(d_in=D_IN, d_sae=D_SAE, arm=arm, **options))


def aux(sae: Any, x: torch.Tensor) -> tuple[Any, torch.Tensor]:
    from sae_lens.saes.sae import TrainStepInput

    coefficients = {name: getattr(c, "value", c) for name, c in sae.get_coefficients().items()}
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    step = TrainStepInput(x, coefficients, dead, 0, False)
    out = sae.training_forward_pass(step)
    return out, out.feature_acts.detach()


@needs_saelens
@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_the_term_in_saelens_loss_is_ours_times_coefficient_and_variance(plugin: Any, kind: str, arm: str) -> None:
    sae, x = made(plugin, kind, arm), next(batches())
    out, acts = aux(sae, x)
    read = plugin.fitting_arm(arm)
    entries = [(b, i, float(acts[b, i])) for b in range(len(x)) for i in range(D_SAE) if acts[b, i] > 0]
    starts = [sum(b < row for b, _, _ in entries) for row in range(len(x) + 1)]
    frequency = (acts > 0).float().mean(0)
    codes = Codes(*(torch.tensor(c) for c in (starts, [i for _, i, _ in entries], [v for *_, v in entries])), frequency)
    options = {"margin": read.margin} if read.margin else {}
    options |= {"anchored": True} if read.anchored else {}
    options |= {"encoder": sae.W_enc.T} if read.penalty == "align" else {}
    ours = PENALTIES[read.penalty](sae.W_dec, None, codes, **options)
    spread = sum(float(((row - x.mean(0)) ** 2).sum()) for row in x) / len(x)
    assert out.losses["penalty_loss"].item() == pytest.approx(read.coefficient * spread * ours.item(), rel=1e-5)
    assert out.loss.item() == pytest.approx(sum(part.item() for part in out.losses.values()), rel=1e-5)


@needs_saelens
@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "standard"])
def test_every_architecture_trains_in_saelens_and_is_saved_as_the_one_without_a_penalty(
    plugin: Any, kind: str, tmp_path: Path
) -> None:
    from sae_lens import SAE
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    nearest = {}
    for arm in ("max_cos:0", "max_cos:5"):
        sae = made(plugin, kind, arm)
        trainer = SAETrainer(SAETrainerConfig(64 * 60, 64, lr=1e-2, lr_end=1e-3), sae, batches())
        trained = trainer.fit()
        unit = torch.nn.functional.normalize(trained.W_dec.detach(), dim=1)
        nearest[arm] = float((unit @ unit.T - 2 * torch.eye(D_SAE)).max(1).values.mean())
        trained.save_inference_model(tmp_path / arm.replace(":", "_"))
    assert nearest["max_cos:5"] < nearest["max_cos:0"] - 0.05
    saved = json.loads((tmp_path / "max_cos_5" / "cfg.json").read_text())
    assert saved["architecture"] == ("jumprelu" if "batchtopk" in kind else kind)
    assert saved["metadata"]["training_architecture"] == f"sae_lm_{kind}"
    assert saved["metadata"]["training_architecture_details"]["arm"] == "max_cos:5"
    theirs = SAE.load_from_disk(tmp_path / "max_cos_5")
    saved["metadata"]["hook_name"] = "blocks.0.hook_out"
    (tmp_path / "max_cos_5" / "cfg.json").write_text(json.dumps(saved))
    x = next(batches(1))
    torch.testing.assert_close(load(tmp_path / "max_cos_5", "cpu")(x), theirs(x), atol=1e-4, rtol=1e-4)


@needs_saelens
@pytest.mark.parametrize(
    ("arm", "part"),
    [
        ("c2r", "has no place for c2r"),
        ("none", "has no place for none"),
        ("max_cos@fvu=0.005", "fvu belongs to sae-lm train"),
        ("max_cos@every=3@k=4", "every, k belongs to sae-lm train"),
        ("mx_cos", "unknown penalty"),
    ],
)
def test_an_arm_that_does_not_fit_is_refused_when_the_config_is_made(plugin: Any, arm: str, part: str) -> None:
    with pytest.raises(SettingsError, match=part):
        plugin.TopKConfig(d_in=D_IN, d_sae=D_SAE, k=3, arm=arm)


@needs_saelens
def test_importing_again_registers_nothing_twice(plugin: Any) -> None:
    assert importlib.reload(plugin).TopKConfig(d_in=D_IN, d_sae=D_SAE, k=3).arm == "max_cos"
