"""SAEBench and sae-probes on an SAE of ours, by the lines of sae_lm/interop/README.md, as they stand there.

They need an environment of their own (see there), without which this is skipped. No hub is reached: the language model
is the embedded one, texts are the embedded text, and the classes of sparse probing are made up. sae-probes brings its
data. Sizes are cut down, so that what is tested is that every evaluation reads the SAE and ends with its figures.
"""

import functools
import json
import re
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

import sae_lm
from sae_lm.embedded.text import embedded_documents
from sae_lm.sae.formats.saelens import save
from sae_lm.sae.model import SAE, SaeConfig

pytestmark = pytest.mark.transformer_lens_3

ROOT = Path(__file__).parents[2]
D_IN, D_SAE = 256, 64
HOOK = "blocks.2.hook_resid_post"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def documented(heading: str) -> list[str]:
    """Python blocks of a section of the room's README."""
    text = (ROOT / "sae_lm" / "interop" / "README.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", text.split(f"## {heading}\n")[1], flags=re.MULTILINE)[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def embedded_as_hooked_transformer(name: str, device: str = "cpu", dtype: Any = torch.float32, **_: Any) -> Any:
    """The embedded model as the class that these programs know, without processing of its weights."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(sae_lm.__file__).parent / "embedded" / "model"
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    c = plain.config
    config = HookedTransformerConfig(
        n_layers=c.num_hidden_layers, d_model=c.hidden_size, n_heads=c.num_attention_heads, d_head=c.head_dim,
        d_mlp=c.intermediate_size, n_ctx=c.max_position_embeddings, d_vocab=c.vocab_size, act_fn="silu",
        eps=c.rms_norm_eps, normalization_type="RMS", positional_embedding_type="rotary", rotary_dim=c.head_dim,
        rotary_adjacent_pairs=False, gated_mlp=True, final_rms=True, model_name="embedded",
        original_architecture="LlamaForCausalLM", device="cpu", default_prepend_bos=True, rotary_base=10_000,
    )  # fmt: skip
    model = HookedTransformer(config, tokenizer=AutoTokenizer.from_pretrained(folder))
    model.load_and_process_state_dict(
        convert_llama_weights(plain, config),
        fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False,
    )  # fmt: skip
    tokens = torch.arange(5, 25)[None]
    torch.testing.assert_close(model(tokens), plain(tokens).logits, rtol=1e-3, atol=1e-2)
    return model.eval()


def ours_on_their_words(folder: Path, sae_folder: Path) -> Any:
    """SAEBench's absorption of each word beside ours, on the same activations, probes and main latents."""
    import pandas as pd

    from sae_lm.metrics.absorption import ConceptAtSae, fraction_scores, full_scores, projections
    from sae_lm.metrics.codes import encode_sparse

    (probe_file,) = (folder / "probes").rglob("probe.pth")
    weights = torch.load(probe_file, weights_only=False).weights.detach()  # an object of its own, written just now
    (file,) = (folder / "a").rglob("*.parquet")
    model, sae, rows = embedded_as_hooked_transformer("embedded"), sae_lm.load(sae_folder, "cpu"), []
    for letter, of in pd.read_parquet(file).groupby("letter"):
        with torch.no_grad():
            x = model.run_with_cache(of["prompt"].tolist(), names_filter=[HOOK])[1][HOOK][:, -6]
        probe = weights[LETTERS.index(str(letter))]
        concept = ConceptAtSae(encode_sparse(sae, [x]), x, torch.arange(len(x)), sae.W_dec.detach(), probe)
        parts = projections(concept, [int(latent) for latent in of["split_feats"].iloc[0]])
        theirs = {"theirs": of["absorption_fraction"].astype(float), "theirs_full": of["is_full_absorption"]}
        ours = {"ours": fraction_scores(parts).double().numpy(), "ours_full": full_scores(parts).numpy()}
        rows.append(of[["letter", "token"]].assign(**theirs, **ours))
    return pd.concat(rows)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The stand-ins, and an SAE in the folder that the lines name. Returns the folder to work in."""
    pytest.importorskip("sae_bench", reason="sae-bench is not installed; see sae_lm/interop/README.md")
    pytest.importorskip("sae_probes", reason="sae-probes is not installed")
    jaxtyping.config.update("jaxtyping_disable", True)  # as JAXTYPING_DISABLE=1, which is documented
    from datasets import Dataset
    from sae_lens.training import activations_store
    from transformer_lens import HookedTransformer

    texts = [document.text for document in embedded_documents()]
    monkeypatch.setattr(
        HookedTransformer, "from_pretrained_no_processing", staticmethod(embedded_as_hooked_transformer)
    )
    monkeypatch.setattr(activations_store, "load_dataset", lambda *_, **__: Dataset.from_dict({"text": texts}))
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN, generator=generator), dim=1)
    weights = {"W_enc": W_dec.T.contiguous(), "b_enc": torch.zeros(D_SAE), "W_dec": W_dec, "b_dec": torch.zeros(D_IN)}
    metadata = {"model_name": "embedded", "hook_name": "blocks.2.hook_out", "context_size": 128, "prepend_bos": True}
    config = SaeConfig(architecture="topk", d_in=D_IN, d_sae=D_SAE, k=8, metadata=metadata)
    save(SAE(config, weights), tmp_path / "runs" / "none-seed0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def as_written(*changes: tuple[str, str]) -> str:
    """All lines of the section, on the CPU and on the embedded model; each further change must be there to make."""
    text = "\n".join(documented("SAEBench and sae-probes"))
    for old, new in (
        ('"cuda"', '"cpu"'), ('"pythia-70m-deduped"', '"embedded"'), ('"blocks.3.hook_resid_post"', f'"{HOOK}"'), *changes,
    ):  # fmt: skip
        assert old in text, f"the lines lack {old}"
        text = text.replace(old, new)
    return text


def run_until(text: str, last: str, **names: Any) -> dict[str, Any]:
    """The first lines, imports and the load, and of the rest the statement that calls this."""
    blocks = re.split(r"\n\n+", text)
    wanted = [block for block in blocks if last in block or "import " in block or "load_from_disk" in block]
    for block in wanted:
        exec(compile(block, last, "exec"), names)
    return names


def test_saebenchs_core_evaluation_measures_the_sae(offline: Path) -> None:
    text = as_written(("200, 2000, 16", "2, 2, 4"))
    run_until(text, "core.multiple_evals(")
    (file,) = (offline / "eval_results" / "core").glob("*.json")
    metrics = json.loads(file.read_text())["eval_result_metrics"]
    assert metrics["sparsity"]["l0"] == pytest.approx(8, abs=0.5)
    performance = metrics["model_performance_preservation"]
    assert performance["ce_loss_with_ablation"] > performance["ce_loss_without_sae"]


def test_saebenchs_absorption_evaluation_measures_the_sae(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sae_bench.evals.absorption.main as absorption
    from sae_bench.evals.absorption import common, feature_absorption, prompting

    def few_words(tokenizer: Any, **options: Any) -> list[str]:
        """Ten words of each letter. It needs every letter: without one its probes' loss is no number."""
        words = sorted(word for word in alpha(tokenizer) if len(word.strip()) > 1)
        return [word for c in LETTERS for word in [w for w in words if w.strip()[0].lower() == c][:10]]

    def answer() -> Any:
        """Answers without a space: the embedded tokenizer has no token for a space and Q."""
        return functools.partial(prompting.first_letter, prefix="")

    alpha = common.get_alpha_tokens
    for module in (common, feature_absorption):
        monkeypatch.setattr(module, "get_alpha_tokens", few_words)
        monkeypatch.setattr(module, "first_letter_formatter", answer)
    # where it keeps probes: below its own package, unless told otherwise, which run_eval does not pass on
    probes = {"probes_dir": offline / "probes"}
    for name, folders in (
        ("run_k_sparse_probing_experiment", {"experiment_dir": offline / "k"}),
        (
            "run_feature_absortion_experiment",
            {"experiment_dir": offline / "a", "sparse_probing_experiment_dir": offline / "k"},
        ),
    ):
        monkeypatch.setattr(absorption, name, functools.partial(getattr(absorption, name), **probes, **folders))
    text = as_written(("llm_batch_size=512", "llm_batch_size=64, min_feats_for_eval=2, min_GT_probe_f1=0.0"))
    run_until(text, "absorption.run_eval(")
    (file,) = (offline / "eval_results" / "absorption").glob("*.json")
    found = json.loads(file.read_text())
    mean = found["eval_result_metrics"]["mean"]
    assert 0 <= mean["mean_absorption_fraction_score"] <= 1 and 0 <= mean["mean_full_absorption_score"] <= 1
    words = ours_on_their_words(offline, offline / "runs" / "none-seed0")
    assert set(words["letter"]) == {detail["first_letter"] for detail in found["eval_result_details"]}
    torch.testing.assert_close(
        torch.tensor(words["ours"].to_numpy()), torch.tensor(words["theirs"].to_numpy()), rtol=1e-3, atol=1e-4
    )
    assert words["ours_full"].tolist() == words["theirs_full"].tolist()
    means = words.groupby("letter")[["ours", "ours_full"]].mean().mean()
    assert means["ours"] == pytest.approx(mean["mean_absorption_fraction_score"], abs=1e-3)
    assert means["ours_full"] == pytest.approx(mean["mean_full_absorption_score"], abs=1e-3)


def test_saebenchs_sparse_probing_measures_the_sae(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd
    from sae_bench.sae_bench_utils import dataset_utils

    topics = {
        0: "the parser reads a file",
        1: "she walked along the shore",
        2: "import the module",
        3: "a king and a queen",
    }
    rows = pd.DataFrame([{"label": k, "text": f"{text} {n}"} for k, text in topics.items() for n in range(40)])
    monkeypatch.setattr(
        dataset_utils, "load_dataset", lambda *_, **__: {part: rows.to_dict("records") for part in ("train", "test")}
    )
    text = as_written(
        (
            "llm_batch_size=512",
            'llm_batch_size=32, dataset_names=["fancyzhx/ag_news"], probe_train_set_size=40, probe_test_set_size=20',
        )
    )
    run_until(text, "probing.run_eval(")
    (file,) = (offline / "eval_results" / "sparse_probing").glob("*.json")
    found = json.loads(file.read_text())["eval_result_metrics"]
    assert 0.5 < found["sae"]["sae_top_1_test_accuracy"] <= 1


def test_sae_probes_measures_the_sae_on_its_own_data(offline: Path) -> None:
    text = as_written(('"ks": [1, 16]', '"ks": [1, 16], "datasets": ["105_click_bait"], "model_cache_path": "cache"'))
    run_until(text, "run_sae_evals(")
    (file,) = (offline / "probes").rglob("*.json")
    found = json.loads(file.read_text())
    assert [entry["k"] for entry in found] == [1, 16]
    assert all(0 <= entry["test_auc"] <= 1 for entry in found)
