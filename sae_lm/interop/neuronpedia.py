"""Write the files that Neuronpedia's upload takes, and those of SAEDashboard, and check them against the limits here.

Nothing is uploaded. Neuronpedia's ``api/feature/upload-batch`` takes one file of `write_neuronpedia` a call: 128
latents, 1 to 1024 tokens an example, 20 logits on either side, no empty token, no latent without an example.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_lm.errors import SaeError
from sae_lm.interop.examples import AT_ONCE, BARS, Encoded, Example, Shown, shown
from sae_lm.interp.promoted_tokens import PromotedTokens
from sae_lm.runtime.files import write_json
from sae_lm.sae.model import SAE

LOGITS, TOKENS, TEXT = 20, 1024, 512
"""Most that Neuronpedia takes: logits on one side, tokens of an example, characters of an explanation."""
INTERVALS, PER_INTERVAL, TOP = 5, 5, 20
"""SAEDashboard: groups of equal width from 0 to the largest activation, examples of each, and of the strongest."""


def write_neuronpedia(
    encoded: Encoded, latents: list[int], out: Path, model_id: str, source: str, promoted: PromotedTokens | None
) -> list[Path]:
    """One ``batch-N.json`` for each 128 latents. model_id and source are lower-cased there, so they are here.

    Raises SaeError for a batch that is beyond Neuronpedia's limits, before it is written.
    """
    paths = []
    for number, batch in enumerate(shown(encoded, latents, TOKENS // 2, TOKENS // 2 - 1)):
        features = [_feature(encoded, of, promoted) for of in batch]
        body = {"modelId": model_id.lower(), "source": source.lower(), "features": features}
        check_upload(body)
        paths.append(out / f"batch-{number}.json")
        write_json(paths[-1], body)
    return paths


def _feature(encoded: Encoded, of: Shown, promoted: PromotedTokens | None) -> dict[str, Any]:
    statistics = encoded.statistics
    logits: dict[str, Any] = {"topLogits": [], "bottomLogits": []}
    if promoted is not None:
        logits["topLogits"] = _logits(encoded, promoted.promoted[of.latent], promoted.promoted_logit[of.latent])
        logits["bottomLogits"] = _logits(encoded, promoted.suppressed[of.latent], promoted.suppressed_logit[of.latent])
    return {
        "index": of.latent,
        "density": float(statistics.fires[of.latent] / statistics.rows),
        **logits,
        "explanations": [],
        "activations": [{"tokens": e.tokens, "values": _rounded(e.values)} for e in of.top],
    }


def _logits(encoded: Encoded, tokens: torch.Tensor, values: torch.Tensor) -> list[dict[str, Any]]:
    return [
        {"token": encoded.store.token_text(int(token)) or "\u2205", "value": round(float(value), 4)}
        for token, value in zip(tokens[:LOGITS], values[:LOGITS], strict=True)
    ]


def check_upload(body: Mapping[str, Any]) -> None:
    """Hold one batch against Neuronpedia's limits. Raises SaeError for the first that is broken."""
    features = body["features"]
    if not 1 <= len(features) <= AT_ONCE:
        raise SaeError(f"a batch for Neuronpedia has {len(features)} latents, expected 1 to {AT_ONCE}")
    if len({feature["index"] for feature in features}) < len(features):
        raise SaeError("a batch for Neuronpedia names a latent twice; expected each once")
    for feature in features:
        who = f"latent {feature['index']}"
        if not 0 <= feature["density"] <= 1:
            raise SaeError(f"{who}: density is {feature['density']}, expected 0 to 1")
        if not feature["activations"]:
            raise SaeError(f"{who} has no example, and Neuronpedia takes none without; leave it out")
        for activation in feature["activations"]:
            tokens, values = activation["tokens"], activation["values"]
            if not 1 <= len(tokens) <= TOKENS or len(tokens) != len(values):
                raise SaeError(f"{who}: {len(tokens)} tokens and {len(values)} values, expected 1 to {TOKENS} of each")
            if "" in tokens or not np.isfinite(values).all():
                raise SaeError(f"{who}: a token is empty or a value is no number, which Neuronpedia refuses")
        for side in ("topLogits", "bottomLogits"):
            if len(feature[side]) > LOGITS or any(logit["token"] == "" for logit in feature[side]):
                raise SaeError(
                    f"{who}: {side} has {len(feature[side])} tokens or an empty one, expected up to {LOGITS}"
                )
        if any(len(explanation["text"]) > TEXT for explanation in feature["explanations"]):
            raise SaeError(f"{who}: an explanation is longer than {TEXT} characters; shorten it")


# --- SAEDashboard


def write_saedashboard(
    encoded: Encoded,
    latents: list[int],
    out: Path,
    sae: SAE,
    facts: Mapping[str, Any],
    promoted: PromotedTokens | None,
) -> list[Path]:
    """``batch-N.json``, ``run_settings.json`` and ``skipped_indexes.json`` as SAEDashboard's runner writes them.

    facts: model_id, layer, sae_set, dataset. Correlated neurons and features and the histogram of logits are left
    empty: they are not computed here.
    """
    size = encoded.store.manifest.recipe.context_size
    paths = []
    for number, batch in enumerate(shown(encoded, latents, size, size)):
        head = {key: facts[key] for key in ("model_id", "layer", "sae_set")} | {"sae_id_suffix": None}
        features = [_dashboard(encoded, of, sae, str(facts["dataset"]), promoted) for of in batch]
        paths.append(out / f"batch-{number}.json")
        write_json(paths[-1], {**head, "features": features})
    dead = [int(latent) for latent in np.flatnonzero(encoded.statistics.fires == 0)]
    head = {key: facts[key] for key in ("model_id", "layer", "sae_set")}
    write_json(out / "skipped_indexes.json", {**head, "log_sparsity": -5, "skipped_indexes": dead})
    write_json(out / "run_settings.json", dict(facts))
    return paths


def _dashboard(encoded: Encoded, of: Shown, sae: SAE, dataset: str, promoted: PromotedTokens | None) -> dict[str, Any]:
    statistics, latent = encoded.statistics, of.latent
    row = sae.W_dec[latent].detach().float().cpu()
    strongest = row.topk(min(3, len(row))).indices
    share = row / row.abs().sum().clamp_min(1e-12)
    width = float(statistics.largest[latent]) / BARS
    sides: dict[str, Any] = {"pos_str": [], "pos_values": [], "neg_str": [], "neg_values": []}
    if promoted is not None:
        for side, tokens, values in (
            ("pos", promoted.promoted[latent], promoted.promoted_logit[latent]),
            ("neg", promoted.suppressed[latent], promoted.suppressed_logit[latent]),
        ):
            logits = _logits(encoded, tokens[:10], values[:10])
            sides |= {f"{side}_str": [x["token"] for x in logits], f"{side}_values": [x["value"] for x in logits]}
    unknown = {
        f"correlated_{what}_{column}": [] for what in ("neurons", "features") for column in ("indices", "l1", "pearson")
    }
    return {
        "feature_index": latent,
        "neuron_alignment_indices": strongest.tolist(),
        "neuron_alignment_values": _rounded(row[strongest].tolist()),
        "neuron_alignment_l1": _rounded(share[strongest].tolist()),
        **unknown,
        **sides,
        "frac_nonzero": float(statistics.fires[latent] / statistics.rows),
        "freq_hist_data_bar_values": _rounded([width * (i + 0.5) for i in range(BARS)]),
        "freq_hist_data_bar_heights": of.bars.tolist(),
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
        "n_prompts_total": len(np.unique(encoded.context)),
        "n_tokens_in_prompt": encoded.store.manifest.recipe.context_size,
        "dataset": dataset,
        "decoder_weights_dist": [],
        "activations": _groups(of, float(statistics.largest[latent])),
        "vector": row.tolist(),
    }


def _groups(of: Shown, largest: float) -> list[dict[str, Any]]:
    """The strongest, then equal intervals of activation from the highest down."""
    out = [_sequence(example, -1.0, largest, -1.0) for example in of.top[:TOP]]
    per, width = BARS // INTERVALS, largest / INTERVALS
    for interval in reversed(range(INTERVALS)):
        contains = float(of.bars[interval * per : (interval + 1) * per].sum() / of.bars.sum())
        inside = [e for e in of.drawn if min(int(e.values[e.centre] / width), INTERVALS - 1) == interval]
        out += [_sequence(e, interval * width, (interval + 1) * width, contains) for e in inside[:PER_INTERVAL]]
    return out


def _sequence(example: Example, low: float, high: float, contains: float) -> dict[str, Any]:
    return {
        "bin_min": low,
        "bin_max": high,
        "bin_contains": contains,
        "tokens": example.tokens,
        "values": _rounded(example.values),
        "qualifying_token_index": example.centre,
    }


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 3) for value in values]
