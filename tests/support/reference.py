"""Slow plain twins of what the package does fast: loops, dense tensors, float64."""

import math
import re
from itertools import product
from math import sqrt

import torch
from scipy import stats
from torch import Tensor

from sae_lm.concepts.context_labels import INDENTED
from sae_lm.concepts.token_sequence import ARTICLES, CLOSING, OPENING, QUOTES
from sae_lm.concepts.words_before import (
    CONJUNCTIONS,
    FAR,
    NEAR,
    NEGATIONS,
    PAST_VERBS,
    PREPOSITIONS,
    PRONOUNS,
    QUESTION_WORDS,
    SHORTLY,
    SPEAKER,
    WOMAN,
    bare,
)


class _Jump(torch.autograd.Function):
    """JumpReLU and its step, stacked, with the straight-through gradients of 2407.14435 for the threshold."""

    @staticmethod
    def forward(ctx, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        on = (pre > threshold).to(pre)
        return torch.stack([pre * on, on])

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (pre, threshold), (to_value, to_step) = ctx.saved_tensors, grads[0]
        window = ((pre - threshold) / ctx.bandwidth).abs() < 0.5
        jump = -window.to(pre) / ctx.bandwidth * (threshold * to_value + to_step)
        return to_value * (pre > threshold), jump.sum(0), None


def dense_loss(
    arch: str,
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    log_threshold: Tensor | None = None,
    *,
    k: int = 1,
    widths: tuple[int, ...] = (),
    balance: float = 1.0,
    sparsity: float = 0.0,
    bandwidth: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """One batch's loss through a dense [batch, d_sae] code, and the code; differentiable by autograd."""
    pre = (x - b_dec) @ W_enc + b_enc
    extra = x.new_zeros(())
    if arch == "topk":
        values, index = pre.topk(k, dim=1)
        z = torch.zeros_like(pre).scatter(1, index, values.relu())
    elif arch == "relu":
        z = pre.relu()
        extra = sparsity * (z * W_dec.norm(dim=1)).sum(1).mean()
    elif arch == "jumprelu":
        assert log_threshold is not None
        z, on = _Jump.apply(pre, log_threshold.exp(), bandwidth)  # pyright: ignore[reportGeneralTypeIssues]
        extra = sparsity * on.sum(1).mean()
    else:
        values, index = pre.flatten().topk(k * len(x))
        z = torch.zeros_like(pre).flatten().scatter(0, index, values.relu()).view_as(pre)
    prefixes = [(x - z[:, :width] @ W_dec[:width] - b_dec).square().sum(1).mean() for width in widths or [len(W_dec)]]
    weights = [balance**outer for outer in reversed(range(len(prefixes)))]
    return sum(w * error for w, error in zip(weights, prefixes, strict=True)) / sum(weights) + extra, z


def mean_abs_cos(rows: Tensor) -> Tensor:
    unit = rows / rows.norm(dim=1, keepdim=True)
    pairs = [(unit[i] * unit[j]).sum().abs() for i in range(len(rows)) for j in range(len(rows)) if i != j]
    return torch.stack(pairs).mean()


def ortsae(rows: Tensor) -> Tensor:
    """OrtSAE's term over one chunk."""
    unit = rows / rows.norm(dim=1, keepdim=True)
    nearest = [max((unit[i] * unit[j]).sum() for j in range(len(rows)) if j != i) for i in range(len(rows))]
    return torch.stack([cosine.clamp_min(0) ** 2 for cosine in nearest]).mean()


def dense_absorption(a: Tensor, x: Tensor, W_dec: Tensor, w: Tensor, main: list[int]) -> list[tuple[bool, float]]:
    """SAEBench 0.6.0's full and fractional absorption, one row and one latent at a time.

    a: dense activations [n, d_sae]. With non-unit decoder rows the strength is a * ||d||.
    """
    p = w / w.norm()
    out = []
    for row in range(len(x)):
        whole = float(x[row] @ p)
        projection, cosine = [], []
        for latent in range(len(W_dec)):
            projection.append(float(a[row, latent] * (W_dec[latent] @ p)))
            cosine.append(float(W_dec[latent] @ p / W_dec[latent].norm()))
        silent = sum(float(a[row, latent] * W_dec[latent].norm()) for latent in main) < 1e-8
        top = max(range(len(W_dec)), key=lambda latent: projection[latent])
        full = silent and cosine[top] >= 0.025 and whole > 0 and projection[top] >= 0.4 * whole
        carried = sum(projection[latent] for latent in main)
        others = sorted(
            (projection[i] for i in range(len(W_dec)) if i not in main and cosine[i] >= 0.1 and projection[i] > 0),
            reverse=True,
        )
        absorbed = sum(others[:3])
        if whole <= 0 or carried >= whole or absorbed < 0.4 * whole:
            fraction = 0.0
        elif carried <= 0:
            fraction = 1.0
        else:
            part = min(absorbed, whole - carried)
            fraction = min(1.0, max(0.0, part / (part + carried)))
        out.append((full, fraction))
    return out


def cosines(rows: Tensor) -> Tensor:
    """Every pair's cosine, [m, m]; 0 on the diagonal."""
    unit = rows / rows.norm(dim=1, keepdim=True)
    return unit @ unit.T * (1 - torch.eye(len(rows), dtype=rows.dtype))


def mean_abs_cos_over(margin: float, rows: Tensor) -> Tensor:
    m = len(rows)
    return (cosines(rows).abs() - margin).clamp_min(0).sum() / (m * (m - 1))


def mean_sq_cos(rows: Tensor) -> Tensor:
    m = len(rows)
    return cosines(rows).square().sum() / (m * (m - 1))


def ortsae_over(margin: float, rows: Tensor) -> Tensor:
    """OrtSAE's term over one chunk, of what the cosines have above a margin."""
    nearest = (cosines(rows) - 2 * torch.eye(len(rows), dtype=rows.dtype)).amax(1)
    return (nearest - margin).clamp_min(0).square().mean()


def independent_sq_cos(rows: Tensor, rate: Tensor) -> Tensor:
    """Sum over pairs of p_i p_j cos^2, over L0."""
    return (rate[:, None] * rate * cosines(rows).square()).sum() / rate.sum()


def coactivation_sq_cos(rows: Tensor, fires: Tensor) -> Tensor:
    """Sum over pairs of P(both fire) cos^2, over L0, for fires [batch, m]."""
    fires = fires.to(rows.dtype)
    return (fires.T @ fires * cosines(rows).square()).sum() / fires.sum()


def anchored_ortsae(rows: Tensor, rate: Tensor) -> Tensor:
    """OrtSAE's term with the neighbour sought among rows of higher rate, and standing still."""
    unit = rows / rows.norm(dim=1, keepdim=True)
    terms = []
    for i in range(len(rows)):
        above = [(unit[i] * unit[j].detach()).sum() for j in range(len(rows)) if rate[j] > rate[i]]
        terms.append(max(above).clamp_min(0) ** 2 if above else torch.zeros((), dtype=rows.dtype))
    return torch.stack(terms).mean()


def anchored_coactivation(rows: Tensor, rate: Tensor, fires: Tensor) -> Tensor:
    """Sum over pairs of P(both fire) cos^2, over L0; the row of higher rate stands still."""
    unit, fires = rows / rows.norm(dim=1, keepdim=True), fires.to(rows.dtype)
    towards = unit @ unit.detach().T * (rate[None, :] > rate[:, None])
    return (fires.T @ fires * towards.square()).sum() / fires.sum()


def batch_norms(z: Tensor) -> Tensor:
    """L2 norm of each latent's activations, as of 2048 rows and 65,536 latents; differentiable where it is 0 too."""
    squares = z.square().sum(0) * (2048 / len(z) * z.shape[1] / 65_536)
    return torch.where(squares > 0, squares.clamp_min(1e-30).sqrt(), 0)


def cross_sample(rows: Tensor, z: Tensor, rate: Tensor | None = None) -> Tensor:
    """C2R's term over one chunk, through rows and activations z [batch, m]; anchored where a rate is given."""
    unit, norms = rows / rows.norm(dim=1, keepdim=True), batch_norms(z)
    terms = []
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if (j != i if rate is None else rate[j] > rate[i])]
        if not others:
            terms.append(rows.new_zeros(()))
            continue
        j = max(others, key=lambda j: float((unit[i] * unit[j]).sum().detach()))
        there, norm = (unit[j], norms[j]) if rate is None else (unit[j].detach(), norms[j].detach())
        terms.append((norms[i] + norm) * (unit[i] * there).sum().clamp_min(0) ** 2)
    return torch.stack(terms).mean()


def silent_generals(rows: Tensor, rate: Tensor, fires: Tensor, nearest: int = 4) -> Tensor:
    """Sum of P(j) (1 - P(i | j)) relu(cos)^2 over rows j and their nearest i of higher rate, which stand still, over L0."""
    unit, fires = rows / rows.norm(dim=1, keepdim=True), fires.to(rows.dtype)
    terms = []
    for j in range(len(rows)):
        cosines = [(float((unit[i] @ unit[j]).detach()), i) for i in range(len(rows)) if rate[i] > rate[j]]
        for _, i in sorted(cosines, reverse=True)[:nearest]:
            given = (fires[:, i] * fires[:, j]).sum() / fires[:, j].sum().clamp_min(1)
            terms.append(fires[:, j].mean() * (1 - given) * (unit[i].detach() @ unit[j]).clamp_min(0) ** 2)
    return torch.stack(terms).sum() / fires.sum(1).mean()


def misalignment(encoder: Tensor, decoder: Tensor) -> Tensor:
    """Mean of 1 - cos of each latent's two rows."""
    pairs = zip(encoder, decoder, strict=True)
    return torch.stack([1 - (e @ d) / (e.norm() * d.norm()) for e, d in pairs]).mean()


def held_near(row: Tensor, start: Tensor, cosine: float) -> Tensor:
    """A unit row turned towards its start until the angle between them is acos(cosine), if it is more."""
    angle, most = math.acos(max(-1.0, min(1.0, float(row @ start)))), math.acos(cosine)
    if angle <= most:
        return row
    return (math.sin(angle - most) * start + math.sin(most) * row) / math.sin(angle)


def t_interval_and_p(deltas: list[float]) -> tuple[float, float, float]:
    """Student's 95% interval of the mean and the two-sided p of a mean of 0."""
    n = len(deltas)
    mean = sum(deltas) / n
    error = sqrt(sum((delta - mean) ** 2 for delta in deltas) / (n - 1)) / sqrt(n)
    reach = stats.t.isf(0.025, n - 1) * error
    return mean - reach, mean + reach, 2 * stats.t.sf(abs(mean) / error, n - 1)


def sign_flip(deltas: list[float]) -> float:
    """Share of the patterns of signs whose sum is as far from 0; sums within 1e-9 are equal."""
    sums = [
        abs(sum(s * delta for s, delta in zip(signs, deltas, strict=True)))
        for signs in product((1, -1), repeat=len(deltas))
    ]
    return sum(total >= sums[0] - 1e-9 for total in sums) / len(sums)


def contextual_labels(tokens: list[str]) -> list[dict[str, bool]]:
    """The definitions, read off the text before each token by regular expressions and loops."""
    out = []
    for t, token in enumerate(tokens):
        past, seen = "".join(tokens[:t]), "".join(tokens[: t + 1])
        previous = tokens[t - 1] if t else ""
        paragraph = re.split(r"\n[^\S\n]*(?=\n)", past)[-1]
        paragraph_ends = len(re.split(r"\n[^\S\n]*(?=\n)", seen)) > len(re.split(r"\n[^\S\n]*(?=\n)", past))
        depth = 0
        for c in paragraph:
            depth = max(0, depth + (c in OPENING) - (c in CLOSING))
        line = past.rpartition("\n")[2] if "\n" in past else None
        first = line is not None and not line.strip() and bool(token.strip()) and "\n" not in token
        line_first = next((u for u in range(t, -1, -1) if first_on_line(tokens, u)), None)
        indented = False
        if (
            line_first is not None
            and line_first < t
            and "\n" not in "".join(tokens[line_first : t + 1])
            and token.strip()
        ):
            whole = "".join(tokens[: line_first + 1]).rpartition("\n")[2]
            indented = len(whole) - len(whole.lstrip()) >= INDENTED
        word = bool(re.fullmatch(r"\w+", token))
        name = re.search(r"\w*\Z", past)
        content = [u for u in range(t) if tokens[u].strip()]
        gap = token[:1].isspace() or (bool(content) and (content[-1] < t - 1 or tokens[content[-1]][-1:].isspace()))
        ended = bool(content) and bool(re.search(r"[.!?][\"')\]\u201d\u2019]*\Z", tokens[content[-1]].strip()))
        article = previous.strip().lower() in ARTICLES and (
            previous[:1].isspace() or not "".join(tokens[: t - 1])[-1:].isalpha()
        )
        letter = any(c.isalpha() for c in token)
        pairs = [(tokens[u - 1], tokens[u]) for u in range(1, t)]
        out.append(
            {
                "inside quotation marks": sum(c in QUOTES for c in paragraph) % 2 == 1
                and not any(c in QUOTES for c in token)
                and not paragraph_ends,
                "inside brackets": depth > 0 and not any(c in OPENING + CLOSING for c in token) and not paragraph_ends,
                "after a quotation": (marks := sum(c in QUOTES for c in paragraph)) > 0
                and marks % 2 == 0
                and not any(c in QUOTES for c in token)
                and not paragraph_ends,
                "first on its line": first,
                "on an indented line": indented,
                "part of a dotted name": word and bool(re.search(r"\w\.[^\W\d]\w*\Z", seen)),
                "after an underscore in a name": word and name is not None and "_" in name.group(),
                "inside a number": token.isdigit() and past[-1:].isdigit(),
                "inside a word": token[:1].isalpha() and past[-1:].isalpha(),
                "first of a sentence": token.strip()[:1].isalpha() and ended and gap,
                "after an article": token[:1].isspace() and token.strip()[:1].isalpha() and article,
                "repeated token": letter and token in tokens[:t],
                "repeated pair": letter and t > 0 and (previous, token) in pairs,
                "after a repeated token": t > 0
                and any(c.isalpha() for c in previous)
                and previous in tokens[: t - 1]
                and token[:1].isspace()
                and token.strip()[:1].isalpha(),
                **labels_of_words_before(tokens, t),
            }
        )
    return out


def first_on_line(tokens: list[str], u: int) -> bool:
    """Whether token u is the first on its line."""
    past = "".join(tokens[:u])
    return "\n" in past and not past.rpartition("\n")[2].strip() and bool(tokens[u].strip()) and "\n" not in tokens[u]


def labels_of_words_before(tokens: list[str], t: int) -> dict[str, bool]:
    """Those of token t, by walking back from it."""

    def is_whole(u: int, words: str) -> bool:
        begins = not tokens[u][:1].isalpha() or u == 0 or not tokens[u - 1][-1:].isalpha()
        return bare(tokens[u]) in words.split() and begins and not tokens[u + 1][:1].isalpha()

    def ends_sentence(u: int) -> bool:
        past, seen = "".join(tokens[:u]), "".join(tokens[: u + 1])
        if len(re.findall(r"\n[^\S\n]*(?=\n)", seen)) > len(re.findall(r"\n[^\S\n]*(?=\n)", past)):
            return True
        goes_on = tokens[u + 1][:1].isalpha() or tokens[u + 1].isdigit()
        return bool(re.search(r"[.!?][\"')\]\u201d\u2019]*\Z", tokens[u].strip())) and not goes_on

    sentence = next((u for u in range(t - 1, -1, -1) if ends_sentence(u)), -1)
    lettered = [u for u in range(sentence + 1, t) if any(c.isalpha() for c in tokens[u])]
    first = lettered[0] if lettered else None
    previous = tokens[t - 1] if t else ""
    follows = t > 0 and tokens[t][:1].isspace() and tokens[t].strip()[:1].isalpha()
    name = bool(re.fullmatch(r"\s?[A-Z][a-z]+", previous)) and t - 1 != first
    name = name and (previous[:1].isspace() or t == 1 or not tokens[t - 2][-1:].isalpha())

    def ends_contraction(u: int) -> bool:
        seen = "".join(tokens[: u + 1]).lower()
        return bool(re.search(r"n['\u2019]t\Z", seen)) and not tokens[u + 1][:1].isalpha()

    def recently(words: str, distance: int) -> bool:
        return any(is_whole(u, words) for u in range(max(0, t - distance), t))

    def in_sentence(words: str, distance: int) -> bool:
        return any(is_whole(u, words) for u in range(max(sentence + 1, t - distance), t))

    return {
        "after a preposition": follows and is_whole(t - 1, PREPOSITIONS),
        "after to": follows and is_whole(t - 1, "to"),
        "after a conjunction": follows and is_whole(t - 1, CONJUNCTIONS),
        "after a pronoun": follows and is_whole(t - 1, PRONOUNS),
        "after a comma": follows and previous.endswith(","),
        "after a number": follows and previous[-1:].isdigit(),
        "after a name": follows and name,
        "shortly after a negation": in_sentence(NEGATIONS, SHORTLY)
        or any(ends_contraction(u) for u in range(max(sentence + 1, t - SHORTLY), t)),
        "after a question word": sentence >= 0 and first is not None and is_whole(first, QUESTION_WORDS),
        "in a sentence with a comma": any(tokens[u].endswith(",") for u in range(sentence + 1, t)),
        "in a sentence in the past tense": in_sentence(PAST_VERBS, t),
        "far into a sentence": sentence >= 0 and t - sentence > FAR,
        "near she or her": recently(WOMAN, NEAR),
        "near I or me": recently(SPEAKER, NEAR),
    }
