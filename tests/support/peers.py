"""What SAEBench and SAELens themselves compute on small tensors -> fixtures/peers.safetensors.

Run it where they are installed, which sae_lm's own environment is not::

    pip install sae-bench==0.6.0 && pip uninstall torchvision
    python tests/support/peers.py

test_agreement.py reads the file and compares. Calculators run as they are; only the language model and the SAE
are stand-ins that hand over given tensors. The k-sparse-probing rule of sae-spelling is taken from SAEBench's copy of it.
"""

from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from sae_bench.evals.absorption.feature_absorption_calculator import FeatureAbsorptionCalculator
from sae_bench.evals.absorption.k_sparse_probing import add_feature_splits_to_metrics_df, train_k_sparse_probes
from sae_bench.evals.absorption.vocab import LETTERS
from sae_bench.evals.core.main import get_sparsity_and_variance_metrics
from sae_bench.evals.meta_structure.main import _decoder_variance_metrics
from sae_lens.evals import ExplainedVarianceCalculator
from safetensors.torch import save_file
from sklearn.metrics import f1_score

OUT = Path(__file__).parents[1] / "fixtures" / "peers.safetensors"
HOOK = "blocks.0.hook_resid_post"


class Model:
    """Hands over given activations, whatever it is asked; a prompt holds the number of its row."""

    def __init__(self, x):
        self.x = x

    def to_tokens(self, prompt):
        return torch.zeros(1, 3)

    def run_with_cache(self, prompts, **_):
        if isinstance(prompts, torch.Tensor):
            return None, {HOOK: self.x[prompts]}
        rows = [int(prompt.strip().removeprefix("w").removesuffix(":")) for prompt in prompts]
        return None, {HOOK: self.x[rows][:, None, :].expand(-1, 2, -1)}


class Lookup:
    """An SAE whose code of a row is given."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, x, a, W_dec=None):
        self.x, self.a, self.W_dec = x, a, W_dec
        self.cfg = SimpleNamespace(d_sae=a.shape[1])

    def encode(self, x):
        return torch.stack([self.a[(self.x == row).all(1).nonzero()[0, 0]] for row in x])


def absorption_cases(draw):
    """(name, a, x, W_dec, probe, main): unit decoders, as SAEBench assumes."""

    def random(n, m, d, share, main, toward=0.0, noise=0.3):
        probe = torch.randn(d, generator=draw)
        W_dec = torch.randn(m, d, generator=draw) + toward * probe
        W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
        a = torch.rand(n, m, generator=draw) * 3 * (torch.rand(n, m, generator=draw) < share)
        return a, a @ W_dec + noise * torch.randn(n, d, generator=draw), W_dec, probe, main

    yield "one main latent", *random(150, 24, 12, 0.2, [3])
    yield "several main latents", *random(150, 24, 12, 0.2, [0, 5, 7, 11], toward=0.3)
    yield "everything fires", *random(60, 16, 8, 1.0, [1, 2])
    yield "latents along the probe", *random(150, 20, 8, 0.25, [4, 9], toward=0.8)
    yield "cosines near the gates", *random(60, 40, 300, 0.3, [0], toward=0.06, noise=0.02)
    yield "all main latents dead", *_with_dead(random(80, 20, 8, 0.3, [2, 6], toward=0.5), [2, 6])
    yield "rows on which nothing fires", *_with_silence(random(80, 20, 8, 0.3, [1], toward=0.5))
    yield "almost silent main latents", *_with_whispers(random(80, 20, 8, 0.3, [1, 3], toward=0.5), draw)


def _with_dead(case, dead):
    case[0][:, dead] = 0
    return case


def _with_silence(case):
    case[0][::2] = 0
    return case


def _with_whispers(case, draw):
    a, main = case[0], case[4]
    a[:, main] = 2e-8 * torch.rand(len(a), len(main), generator=draw)  # about half of them below 1e-8
    return case


def absorption(tensors, draw):
    for name, a, x, W_dec, probe, main in absorption_cases(draw):
        calculator = FeatureAbsorptionCalculator(Model(x), icl_word_list=[], base_template="{word}:")
        words = [f"w{row}" for row in range(len(x))]
        found = calculator.calculate_absorption(Lookup(x, a, W_dec), words, probe, main, layer=0, show_progress=False)
        key = f"absorption/{name}"
        tensors |= {f"{key}/a": a, f"{key}/x": x, f"{key}/W_dec": W_dec, f"{key}/probe": probe}
        tensors[f"{key}/main"] = torch.tensor(main)
        tensors[f"{key}/full"] = torch.tensor([r.is_full_absorption for r in found.word_results])
        tensors[f"{key}/fraction"] = torch.tensor(
            [float(r.absorption_fraction) for r in found.word_results], dtype=torch.float64
        )


def split_rule(tensors, draw):
    """The rule alone, on F1 curves of 26 letters: random, rising, exactly at the threshold, falling, flat."""
    curves = torch.rand(26, 10, generator=draw, dtype=torch.float64)
    curves[6:16] = curves[6:16].cumsum(1) / 10
    curves[16] = 0.5 + 0.03 * torch.arange(10)
    curves[17] = torch.linspace(0.9, 0.1, 10)
    curves[18:20] = torch.tensor([[0.0], [0.7]])
    curves[20:26] = 0.2 + 0.031 * torch.arange(10) - 0.002 * torch.arange(6)[:, None] * torch.arange(10)
    tensors["rule/f1"], tensors["rule/count"] = curves, _counts(curves, torch.arange(10).expand(26, -1))


def _counts(f1, latents):
    """SAEBench's number of main latents from F1 [26, k] and ranked latents [26, k]."""
    columns = {"letter": list(LETTERS)}
    for k in range(1, f1.shape[1] + 1):
        columns[f"f1_sparse_sae_{k}"] = f1[:, k - 1].tolist()
        columns[f"sparse_sae_k_{k}_feats"] = [row[:k].numpy() for row in latents]
    table = pd.DataFrame(columns)
    add_feature_splits_to_metrics_df(table, max_k_value=f1.shape[1])
    return torch.tensor([len(found) for found in table["split_feats"]])


def splitting(tensors, draw, max_k=6):
    """L1 probe, regressions and rule: letter c is carried by 1 + c % 4 latents, each of which takes a part of its words."""
    carriers = [
        list(range(start, start + 1 + c % 4)) for c in range(26) for start in [sum(1 + i % 4 for i in range(c))]
    ]
    d_sae, n = carriers[-1][-1] + 1 + 8, 1872
    letter = torch.arange(n) % 26
    a = torch.zeros(n, d_sae)
    for row in range(n):
        mine = carriers[int(letter[row])]
        a[row, mine[int(torch.randint(len(mine), (1,), generator=draw))]] = 1 + torch.rand(1, generator=draw)
    a[:, -8:] = torch.rand(n, 8, generator=draw) * (torch.rand(n, 8, generator=draw) < 0.1)
    train = torch.arange(n) < 2 * n // 3
    x = torch.arange(n).float()[:, None]
    sae = Lookup(x, a)
    sae.encode, sae.cfg.d_sae = lambda rows: a[rows[:, 0].long()], d_sae
    torch.manual_seed(0)
    labels = [(str(row), int(letter[row])) for row in train.nonzero().flatten()]
    # it starts from random weights, which so few words would leave standing at its default batch size of 4096
    probes = train_k_sparse_probes(sae, labels, x[train], ks=list(range(1, max_k + 1)), batch_size=64)
    f1, told = torch.zeros(26, max_k, dtype=torch.float64), letter[~train].numpy()
    for c in range(26):
        for k in range(1, max_k + 1):
            score = probes[k][c](a[~train]).detach().numpy()
            f1[c, k - 1] = f1_score(told == c, score > 0.0)
    latents = torch.stack([probes[max_k][c].feature_ids for c in range(26)])
    strength, latent = a.topk(int((a > 0).sum(1).max()), dim=1)
    tensors |= {"splitting/strength": strength, "splitting/latent": latent.to(torch.uint8)}
    tensors |= {"splitting/letter": letter.to(torch.uint8), "splitting/train": train, "splitting/latents": latents}
    tensors |= {"splitting/d_sae": torch.tensor(d_sae), "splitting/f1": f1, "splitting/count": _counts(f1, latents)}


def variance(tensors, draw):
    """A relu SAE's explained variance and its companions, by SAELens and by SAEBench."""
    d, m, n = 10, 24, 360
    x = torch.randn(n, d, generator=draw) * torch.linspace(0.5, 3, d) + torch.randn(d, generator=draw) * 2
    W_dec = torch.randn(m, d, generator=draw)
    weights = {"W_dec": W_dec / W_dec.norm(dim=1, keepdim=True), "b_dec": x.mean(0)}
    weights |= {"W_enc": weights["W_dec"].T.contiguous() * 0.4, "b_enc": torch.full((m,), -0.3)}
    tensors |= {f"variance/{name}": value for name, value in {**weights, "x": x}.items()}

    class Relu:
        device = torch.device("cpu")
        cfg = SimpleNamespace(d_sae=m, hook_name=HOOK, hook_head_index=None, hook_layer=0)

        def __init__(self, unit):
            self.unit = unit

        def encode(self, rows):
            return ((rows / self.unit - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]).relu() * self.unit

        def decode(self, z):
            return z @ weights["W_dec"] + weights["b_dec"] * self.unit

    calculator, sae = ExplainedVarianceCalculator(), Relu(1.0)
    for rows in x.split(100):
        calculator.add_batch(sae.decode(sae.encode(rows)), rows)
    tensors["variance/saelens"] = torch.tensor(calculator.compute(), dtype=torch.float64)

    def saebench(unit, batches):
        """unit: what one is in the unit of the activations; batches: how many of equal size."""
        blocks = torch.arange(n).view(-1, 12)
        served = iter(blocks.chunk(batches))
        store = SimpleNamespace(get_batch_tokens=lambda size: next(served))
        flags = dict.fromkeys(("compute_l2_norms", "compute_sparsity_metrics", "compute_variance_metrics"), True)
        metrics, features = get_sparsity_and_variance_metrics(
            Relu(unit), Model(x * unit), store, n_batches=batches, compute_featurewise_density_statistics=True,
            eval_batch_size_prompts=len(blocks) // batches, model_kwargs={}, **flags,
        )  # fmt: skip
        return metrics, features

    for name, unit, batches in (("whole", 1.0, 1), ("in three batches", 1.0, 3), ("in tenths", 0.1, 1)):
        metrics, features = saebench(unit, batches)
        for key in ("explained_variance", "mse", "l0", "l2_ratio", "relative_reconstruction_bias"):
            tensors[f"variance/saebench {name}/{key}"] = torch.tensor(metrics[key], dtype=torch.float64)
        tensors[f"variance/saebench {name}/density"] = torch.tensor(features["feature_density"])


def meta(tensors, draw):
    """SAEBench's meta-SAE explained variance of given reconstructions."""
    rows = torch.randn(70, 9, generator=draw) + 0.5
    for name, reconstruction in (
        ("close", rows + 0.3 * torch.randn(70, 9, generator=draw)),
        ("mean", rows.mean(0).expand(70, -1).contiguous()),
        ("worse than the mean", torch.randn(70, 9, generator=draw)),
    ):
        places = iter(reconstruction.split(32))

        class Meta:
            def eval(self):
                pass

            def __call__(self, batch, places=places):
                return next(places)

        score, _ = _decoder_variance_metrics(Meta(), rows, eval_batch_size=32)
        tensors |= {f"meta/{name}/reconstruction": reconstruction, f"meta/{name}/rows": rows.clone()}
        tensors[f"meta/{name}/score"] = torch.tensor(score, dtype=torch.float64)


def main():
    draw, tensors = torch.Generator().manual_seed(0), {}
    for part in (absorption, split_rule, splitting, variance, meta):
        part(tensors, draw)
    OUT.parent.mkdir(exist_ok=True)
    versions = {name: version(name) for name in ("sae-bench", "sae-lens", "torch", "scikit-learn")}
    save_file({name: value.contiguous() for name, value in tensors.items()}, OUT, {**versions, "numpy": np.__version__})
    print(f"{OUT}: {OUT.stat().st_size:,} bytes, {versions}")


if __name__ == "__main__":
    main()
