"""codes x concept -> how many latents it takes to carry the concept: feature splitting.

The rule of sae-spelling (Chanin et al. 2024, 2409.14507; k_sparse_probing.py there): rank latents
by an L1 probe, fit logistic regressions on the top 1, 2, ... of them, and count a further latent as
a split while it adds more than ``gain`` to the F1. differs: the F1 that selects is taken on
validation types, so that test types stay unseen (SAEBench selects on the set it then scores); and
strengths are divided by their mean, so that the probe's fixed learning rate suits every model.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lm.metrics.codes import Codes
from sae_lm.metrics.concepts import TEST, TRAIN, VALIDATION, ConceptRows, f1
from sae_lm.seeds import derive

EPOCHS, BATCH = 50, 4096
LR_START, LR_END, L1, WEIGHT_DECAY = 1e-2, 1e-5, 0.01, 1e-6
"""sae-spelling's probe settings."""


class Split(NamedTuple):
    latents: list[int]
    """main latents of the concept, strongest first; their number is the splitting count"""
    ranking: list[int]
    """the candidates they were taken from: the first k are the main latents at a k given from outside"""
    f1_by_k: list[float]
    """validation F1 with the top 1, 2, ... latents, up to the first that failed to add"""
    test_f1: float
    """F1 of the main latents together, on test types"""


def split_counts(
    codes: Codes, rows: ConceptRows, concepts: list[int], max_k: int, gain: float, seed: int
) -> dict[int, Split]:
    """The main latents of each concept (a column of ``rows.labels``)."""
    train = rows.part == TRAIN
    weights = l1_probe(codes.take(train), rows.labels[train][:, concepts], seed)
    ranked = weights.topk(min(max_k, codes.d_sae), dim=0).indices.T.tolist()
    return {
        concept: _main_latents(codes, rows, concept, order, gain)
        for concept, order in zip(concepts, ranked, strict=True)
    }


def l1_probe(codes: Codes, labels: Bool[Tensor, "n concepts"], seed: int) -> Float[Tensor, "d_sae concepts"]:
    """Signed weights of a multi-label logistic probe on the codes, L1-penalised."""
    generator = torch.Generator().manual_seed(derive("split probe", seed))
    firing = codes.strength[codes.strength > 0]
    strength = codes.strength / firing.mean() if len(firing) else codes.strength
    weight = torch.zeros(codes.d_sae, labels.shape[1], requires_grad=True)
    bias = torch.zeros(labels.shape[1], requires_grad=True)
    positive = labels.sum(0).clamp_min(1)
    balance = (~labels).sum(0) / positive
    optimizer = torch.optim.Adam([weight, bias], lr=LR_START, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, (LR_END / LR_START) ** (1 / EPOCHS))
    target = labels.float()
    for _ in range(EPOCHS):
        for chunk in torch.randperm(len(labels), generator=generator).split(BATCH):
            logits = bias + torch.nn.functional.embedding_bag(
                codes.latent[chunk], weight, per_sample_weights=strength[chunk], mode="sum"
            )
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target[chunk], pos_weight=balance)
            loss = loss + L1 * weight.abs().sum(0).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return weight.detach()


def _main_latents(codes: Codes, rows: ConceptRows, concept: int, order: list[int], gain: float) -> Split:
    from sklearn.linear_model import LogisticRegression

    columns = codes.columns(order)
    labels = rows.labels[:, concept]
    parts = {part: rows.part == part for part in (TRAIN, VALIDATION, TEST)}
    best, main, test_f1, scores = -1.0, 0, 0.0, []
    for k in range(1, len(order) + 1):
        model = LogisticRegression(max_iter=500, class_weight="balanced")
        model.fit(columns[parts[TRAIN], :k].numpy(), labels[parts[TRAIN]].numpy())
        found = torch.from_numpy(model.predict(columns[:, :k].numpy())).bool()
        scores.append(f1(found[parts[VALIDATION]], labels[parts[VALIDATION]]))
        if scores[-1] <= best + gain:
            break
        best, main = scores[-1], k
        test_f1 = f1(found[parts[TEST]], labels[parts[TEST]])
    return Split(order[:main], order, scores, test_f1)
