"""Exported files are read by the programs they are for: delphi, SAEDashboard, lm-evaluation-harness.

Each test skips where its program is not installed; they go together in no environment with sae_lm's own requirements.
"""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import HOOK, WORDS, random_contexts, random_sae, write_store

from sae_lm.commands.export import export
from sae_lm.sae.formats.saelens import save
from sae_lm.settings import ExportSettings

CONTEXT = 64
"""A multiple of delphi's example length."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(target, ...) -> the store, the SAE and the folder of what was exported from them."""
    folder = tmp_path_factory.mktemp("exported")
    store = write_store(folder / "store", random_contexts(40, CONTEXT, 0), per_shard=7)
    sae = random_sae(len(WORDS), 150, 5, 1)
    save(sae, folder / "sae")

    def make(to: str, **changes: Any) -> Any:
        out = folder / to
        rows = {} if "strength" in changes else {"store": str(store.path), "codes": folder / "codes"}
        export(ExportSettings(**{"sae": str(folder / "sae"), "to": to, "out": out, "device": "cpu", **rows, **changes}))
        return store, sae, out

    return make


def stand_in(name: str, attribute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that delphi imports and does not use for reading a cache: its search by embedding."""
    try:
        __import__(name)
    except ImportError:
        module = ModuleType(name)
        setattr(module, attribute, None)
        monkeypatch.setitem(sys.modules, name, module)


def test_delphi_reads_its_cache_and_builds_examples(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("delphi", reason="delphi (eai-delphi) is not installed")
    stand_in("faiss", "IndexFlatL2", monkeypatch)
    stand_in("sentence_transformers", "SentenceTransformer", monkeypatch)
    config = pytest.importorskip("delphi.config")
    loader = pytest.importorskip("delphi.latents.loader")
    store, sae, out = exported("delphi")
    constructor = config.ConstructorConfig(example_ctx_len=16, min_examples=5, n_non_activating=5)
    sampler = config.SamplerConfig(n_examples_train=4, n_examples_test=4, n_quantiles=2)

    class Words:
        """A tokenizer, which delphi asks for the texts of tokens."""

        def batch_decode(self, tokens: Any, **options: Any) -> list[str]:
            return [WORDS[int(token)] for token in tokens]

        decode = batch_decode

    dataset = loader.LatentDataset(out / "latents", sampler, constructor, tokenizer=Words())
    assert torch.equal(dataset.tokens, store.blocks().long())
    acts = sae.encode(store.rows(HOOK).float())
    columns = store.tokens()
    fires = (acts > 0).sum(0)
    seen = {}
    for buffer in dataset.buffers:
        for data in buffer:
            seen[data.latent.latent_index] = data.activation_data
    assert sorted(seen) == fires.nonzero().flatten().tolist()
    for latent, data in seen.items():
        rows = (acts[:, latent] > 0).nonzero().flatten()
        where = torch.stack([columns["context"][rows], columns["position"][rows]], 1).long()
        assert torch.equal(data.locations[:, :2], where)
        np.testing.assert_array_equal(data.activations.numpy(), acts[rows, latent].numpy().astype(np.float16))
    records = list(dataset)
    assert records and {record.latent.latent_index for record in records} <= set(seen)
    for record in records:
        best = max(float(example.activations.max()) for example in record.examples)
        assert best == pytest.approx(float(acts[:, record.latent.latent_index].max()), rel=1e-3)
        assert all(example.tokens.shape == (16,) for example in record.examples)
        assert record.train and record.test


def test_saedashboards_own_classes_take_the_batches_and_give_them_back(exported: Any) -> None:
    dashboard = pytest.importorskip(
        "sae_dashboard.neuronpedia.neuronpedia_dashboard", reason="sae-dashboard is not installed"
    )
    out = exported("saedashboard")[2]
    files = sorted(out.glob("batch-*.json"))
    assert files
    for file in files:
        body = json.loads(file.read_text())
        batch = dashboard.NeuronpediaDashboardBatch(**body)
        assert batch.to_dict() == body
        assert all(feature.activations for feature in batch.features)


def test_the_harness_steers_a_model_as_the_latent_does(
    exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steered = pytest.importorskip("lm_eval.models.hf_steered", reason="lm-eval is not installed")
    pytest.importorskip("sparsify", reason="eai-sparsify, which lm-eval reads the SAE with, is not installed")
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    width = len(WORDS)
    config = LlamaConfig(
        num_hidden_layers=3,
        hidden_size=width,
        num_attention_heads=1,
        head_dim=16,
        intermediate_size=32,
        vocab_size=width,
    )
    model = AutoModelForCausalLM.from_config(config)
    sae, out = exported("lm-eval", latents=[7], strength=6.0)[1:]
    harness = object.__new__(steered.SteeredModel)
    read = steered.SteeredModel.derive_steer_config(str(out / "steer.csv"))
    assert list(read) == ["layers.1"] and read["layers.1"]["steering_coefficient"] == 6.0
    torch.testing.assert_close(read["layers.1"]["steering_vector"], sae.W_dec[7])
    vector = read["layers.1"]["steering_vector"] * read["layers.1"]["steering_coefficient"]
    harness.hook_to_steer = {
        "layers.1": lambda acts: steered.SteeredModel.add(acts=acts, vector=vector, head_index=None)
    }
    tokens = torch.arange(12)[None] % width

    def move(module: Any, inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden + 6.0 * sae.W_dec[7]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with torch.no_grad():
        plain = model(tokens).logits
        with steered.steer(model, harness.hook_to_steer):
            theirs = model(tokens).logits
        handle = model.get_submodule("model.layers.1").register_forward_hook(move)
        ours = model(tokens).logits
        handle.remove()
    torch.testing.assert_close(theirs, ours)
    assert not torch.allclose(theirs, plain, atol=1e-3)
