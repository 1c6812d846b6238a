"""Count how many latents it takes to carry one concept (feature splitting), and find which they are.

The rule of sae-spelling (Chanin et al. 2024, 2409.14507; k_sparse_probing.py there): rank latents
by an L1 probe, fit logistic regressions on the top 1, 2, ... of them, and count a further latent as
a split while it adds more than ``gain`` to the F1. differs: the F1 that selects is taken on
validation words, so that test words stay unseen (SAEBench selects on the set it then scores);
strengths are divided by their mean, so that the probe's fixed learning rate and the regressions' fixed
penalty suit every model, in whatever units its activations are; and
the regressions are solved to their optimum, where scikit-learn's stop a little before it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lm.concepts.probes import f1
from sae_lm.concepts.rows import ConceptRows
from sae_lm.concepts.word_split import TEST, TRAIN, VALIDATION
from sae_lm.metrics.codes import TokenCodes
from sae_lm.runtime.seeds import derive

EPOCHS, BATCH = 50, 4096
LR_START, LR_END, L1, WEIGHT_DECAY = 1e-2, 1e-5, 0.01, 1e-6
"""sae-spelling's probe settings."""
NEWTON_STEPS, HALVINGS, CONVERGED, ROUNDING = 100, 40, 1e-9, 1e-12
"""Of the regressions: steps at most, step halvings at most, decrease of the loss relative to it that ends them, increase that is no
increase."""
NO_LOGIT = 1e-9
"""What a logit has to exceed for yes."""
Ranker = Callable[[TokenCodes, Tensor, int], Tensor]
"""Codes of tokens, their labels [n concepts] and a seed -> what candidates are ranked by, largest first [d_sae concepts]."""


class Split(NamedTuple):
    latents: list[int]
    """main latents of the concept, strongest first; their number is the splitting count"""
    ranking: list[int]
    """the candidates they were taken from: the first k are the main latents at a k given from outside"""
    f1_by_k: list[float]
    """validation F1 with the top 1, 2, ... latents, up to the first that failed to add"""
    test_f1_by_k: list[float]
    """F1 on test words with the top 1, 2, ... latents, for all of the ranking"""


def l1_probe(
    codes: TokenCodes, labels: Bool[Tensor, "n concepts"], seed: int, epochs: int = EPOCHS
) -> Float[Tensor, "d_sae concepts"]:
    """Signed weights of a multi-label logistic probe on the codes, L1-penalised.

    The published recipe of sae-spelling, its optimiser, schedule and number of epochs included: no solver of a
    library stops where it does, and which latents rank first depends on that. The gradient is
    written out, and products are those of scipy's sparse matrices: measured, about five times as fast as autograd
    through ``embedding_bag``.
    """
    from scipy.sparse import csr_matrix

    generator = torch.Generator().manual_seed(derive("split probe", seed))
    n, strength = len(codes), codes.strength / codes.strength.mean()
    code = csr_matrix((strength.numpy(), codes.latent.numpy(), codes.starts.numpy()), (n, codes.d_sae))
    weight, bias = torch.zeros(codes.d_sae, labels.shape[1]), torch.zeros(labels.shape[1])
    balance = (~labels).sum(0) / labels.sum(0).clamp_min(1)
    optimizer = torch.optim.Adam([weight, bias], lr=LR_START, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, (LR_END / LR_START) ** (1 / epochs))
    # the loss is the mean over rows and concepts of cross-entropies in which a positive weighs ``balance``, and
    # L1 * the mean over concepts of sum |w|
    positive = labels * balance
    importance = torch.where(labels, balance, 1.0)
    for _ in range(epochs):
        # of a single batch the order does not matter; measured: taking rows of a sparse matrix is a third of a step
        batches = torch.randperm(n, generator=generator).split(BATCH) if n > BATCH else [torch.arange(n)]
        for chunk in batches:
            part = code[chunk.numpy()] if n > BATCH else code
            logits = torch.from_numpy(part @ weight.numpy()) + bias
            slope = (logits.sigmoid_() * importance[chunk] - positive[chunk]) / logits.numel()
            weight.grad = torch.from_numpy(part.T @ slope.numpy()).add_(weight.sign(), alpha=L1 / labels.shape[1])
            bias.grad = slope.sum(0)
            optimizer.step()
        schedule.step()
    return weight


def firing_f1(codes: TokenCodes, labels: Bool[Tensor, "n concepts"], seed: int = 0) -> Float[Tensor, "d_sae concepts"]:
    """F1 of each latent alone, its firing a yes. The seed is not used: nothing is drawn."""
    fires = replace(codes, strength=torch.ones_like(codes.strength)).matrix()  # counts are exact in float32 to 2^24
    found = torch.from_numpy(fires.T @ labels.float().numpy())
    fired = torch.bincount(codes.latent, minlength=codes.d_sae)
    return 2 * found / (fired[:, None] + labels.sum(0)).clamp_min(1)


RANKERS: dict[str, Ranker] = {"l1_probe": l1_probe, "f1": firing_f1, "both": l1_probe}
"""By the name that settings give them; of both the first, the other is `firing_f1`."""


def split_counts(
    codes: TokenCodes,
    rows: ConceptRows,
    concepts: list[int],
    max_k: int,
    gain: float,
    seed: int,
    rank_by: Ranker = l1_probe,
) -> dict[int, Split]:
    """The main latents of each concept (a column of ``rows.labels``)."""
    train = rows.subset == TRAIN
    weights = rank_by(codes.take(train), rows.labels[train][:, concepts], seed)
    scaled = replace(codes, strength=codes.strength / codes.strength.mean())
    ranked = weights.topk(min(max_k, codes.d_sae), dim=0).indices.T.tolist()
    return {
        concept: _main_latents(scaled, rows, concept, order, gain)
        for concept, order in zip(concepts, ranked, strict=True)
    }


def nested_regressions(
    x: Float[Tensor, "n columns"], labels: Bool[Tensor, " n"]
) -> tuple[Float[Tensor, "columns columns"], Float[Tensor, " columns"]]:
    """Logistic regressions on the first 1, 2, ... columns: [columns, fits] weights (0 beyond a fit's own columns) and biases.

    Both float64. The objective is that of scikit-learn's ``LogisticRegression(class_weight="balanced")``: the sum of cross-entropies,
    in which both classes weigh n / 2, and half the squared weights, without the bias. Newton's method with step
    halving, all fits at once: measured on 5000 and 40,000 rows of 10 columns, .04 and .06 s, where scikit-learn 1.9.1
    (newton-cholesky, tol 1e-4) takes .07 and .26 s for the ten one by one and stops up to .1 of a weight before the
    optimum, and no library fits them together. Rows on which all columns are 0 differ by their label alone and are counted, not repeated.
    """
    n, count = x.shape
    some = (x != 0).any(1)
    every = torch.cat([x[some].double(), torch.zeros(2, count, dtype=torch.float64)])
    every = torch.cat([every, torch.ones(len(every), 1, dtype=torch.float64)], 1)
    target = torch.cat([labels[some].double(), torch.tensor([0.0, 1.0], dtype=torch.float64)])[:, None]
    positive = int(labels.sum())
    by_class = torch.tensor([n / (2 * max(1, n - positive)), n / (2 * max(1, positive))], dtype=torch.float64)
    counts = torch.stack([(~some & ~labels).sum(), (~some & labels).sum()])
    importance = by_class[target[:, 0].long()]
    importance[-2:] *= counts
    importance = importance[:, None]

    ridge = torch.ones(count + 1, dtype=torch.float64)
    ridge[-1] = 0
    in_fit = torch.cat([torch.ones(count, count).triu(), torch.ones(1, count)]).double()  # [columns + 1, fits]
    outside = torch.diag_embed(1 - in_fit.T)

    def loss(beta: Tensor) -> Tensor:
        logits = every @ beta
        entropies = torch.nn.functional.softplus(logits) - target * logits
        return (importance * entropies).sum(0) + (ridge[:, None] * beta.square()).sum(0) / 2

    beta = torch.zeros(count + 1, count, dtype=torch.float64)
    now = loss(beta)
    for _ in range(NEWTON_STEPS):
        probability = (every @ beta).sigmoid()
        slope = (every.T @ (importance * (probability - target)) + ridge[:, None] * beta) * in_fit
        curve = importance * probability * (1 - probability)
        hessian = torch.einsum("nf,ni,nj->fij", curve, every, every) + ridge.diag()
        hessian = hessian * (in_fit.T[:, :, None] * in_fit.T[:, None, :]) + outside
        step = torch.linalg.solve(hessian, slope.T).T
        before = now
        beta, now = _downhill(loss, beta, step, now)
        if (before - now <= CONVERGED * now).all():
            break
    return beta[:-1], beta[-1]


def _downhill(loss: Callable[[Tensor], Tensor], beta: Tensor, step: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
    """Each fit's weights after as much of its step, halved again and again, as does not raise its loss; and the losses."""
    length = torch.ones_like(now)
    for _ in range(HALVINGS):
        after = loss(beta - length * step)
        worse = ~(after <= now * (1 + ROUNDING))
        if not worse.any():
            return beta - length * step, after
        length = torch.where(worse, length / 2, length)
    return beta, now


def _main_latents(codes: TokenCodes, rows: ConceptRows, concept: int, order: list[int], gain: float) -> Split:
    columns = codes.columns(order)
    labels = rows.labels[:, concept]
    train, validation, test = (rows.subset == subset for subset in (TRAIN, VALIDATION, TEST))
    weight, bias = nested_regressions(columns[train], labels[train])

    def scores(subset: Tensor) -> list[float]:
        # where no column fires the logit is the bias: of columns that never did 0, but for rounding
        predicted = columns[subset].double() @ weight + bias > NO_LOGIT
        return [f1(predicted[:, k], labels[subset]) for k in range(len(order))]

    on_validation = scores(validation)
    main, tried = rule(on_validation, gain)
    return Split(order[:main], order, on_validation[:tried], scores(test))


def rule(scores: list[float], gain: float) -> tuple[int, int]:
    """sae-spelling's rule, given the F1 with 1, 2, ... latents: (how many are main latents, how many were tried).

    A latent more is taken while it adds more than ``gain`` to the best so far; the first that does not ends it, so
    that a later gain is not seen.
    """
    main = 1
    for k in range(2, len(scores) + 1):
        if scores[k - 1] <= scores[main - 1] + gain:
            return main, k
        main = k
    return main, len(scores)
