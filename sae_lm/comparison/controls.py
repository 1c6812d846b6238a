"""Check what each outcome can see: measure a perfect SAE and spoilt copies of the baseline on the same concepts.

An outcome that does not put them in order says nothing about an SAE by itself; which those are is found anew in every
comparison, on its own SAEs and concepts.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

import torch

from sae_lm.comparison.equal_alarms import Scale, all_concept_figures, with_f1_figures
from sae_lm.comparison.evaluate import OnConcepts, batch_rows, concept_means, find_main_latents, ranked_by_f1
from sae_lm.comparison.evaluation_set import EvaluationSet
from sae_lm.comparison.outcomes import BY_F1, METRICS, PRIMARY
from sae_lm.comparison.pairs import Reader, take_rows
from sae_lm.concepts.word_split import TEST
from sae_lm.metrics.absorption import MainLatents, main_latents, type_mean
from sae_lm.metrics.codes import firing_codes
from sae_lm.metrics.graded_saes import PlantedSAE, absorbing_saes, dropped_sae, oracle_sae, permuted_sae
from sae_lm.metrics.reconstruction import quality
from sae_lm.metrics.splitting import Split
from sae_lm.runtime.progress import Progress
from sae_lm.sae.model import SAE
from sae_lm.settings import CompareSettings

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of the latents that are spoilt."""
ABSORBED = (0.1, 0.2, 0.4)
"""Shares of a probe's rows on which the oracle's latent is silent at most, and others carry the concept."""
ROWS = 8192
"""Held-out rows for the oracle's least squares, and for FVU and L0; at most."""
ORDERED = (*PRIMARY, "absorption_full", "main_f1", "fvu")
"""Outcomes that are asked to put the SAEs in order; primary ones by the F1 of main latents too, where that was asked for."""
MOVES_WITH_L0 = ("fvu",)
"""Of these, what tells little of two SAEs of different L0."""
SAME = 1e-9
"""Difference of two figures that is rounding."""
PLANTED = ("planted_holes", "planted_in", "absorbers_as_main")
"""What absorption was planted: share of candidate rows on which the planted latent is silent, mean over concepts as of hole
rate; number of concepts that have absorbers; and of those in which one of these is among the main latents."""
SPOILT = {"permuted": "permuted decoder rows", "dropped": "dropped latents"}


class GradedSae(NamedTuple):
    """An SAE whose place is known, and its figures."""

    kind: str
    """probes (no SAE: the probes themselves as detectors), oracle, told oracle (with the planted latents given as main
    latents), absorbing, baseline, permuted or dropped"""
    share: float
    """of the latents that are spoilt; of a probe's rows that absorbers take at most"""
    values: dict[str, float]
    """of metrics; of absorbing ones `PLANTED` too"""


class Grades(NamedTuple):
    saes: list[GradedSae]
    planted: list[tuple[str, bool]]
    """each concept's name, and whether the oracle's latent for it was found among its main latents"""


def grade(
    sae: SAE,
    on_concepts: OnConcepts,
    settings: CompareSettings,
    evaluation_set: EvaluationSet,
    scale: Scale,
    scale_by_f1: Scale | None,
) -> Grades:
    """Measure what `SAE` of the baseline is given, the oracle made from it, and spoilt copies of both.

    on_concepts, scale, scale_by_f1 (where both rankings are asked for): as ``sae_lm.comparison.measure`` has them of this
    SAE.
    """

    def figures(other: SAE, found: OnConcepts, by_f1: list[Split] | None) -> dict[str, float]:
        per_concept, _ = all_concept_figures(other, *found, evaluation_set, *scale)
        if scale_by_f1 and by_f1:
            per_concept = with_f1_figures(per_concept, other, found[0], by_f1, evaluation_set, scale_by_f1)
        rebuilt, _, _ = quality(other, some_rows(evaluation_set.read, other))
        return concept_means(per_concept) | {"fvu": rebuilt.fvu, "l0": rebuilt.l0}

    def find(other: SAE) -> OnConcepts:
        found = find_main_latents(other, settings, evaluation_set)
        assert found, "what is graded has codes, so there is a concept in use"
        return found

    def second(found: OnConcepts) -> list[Split] | None:
        return ranked_by_f1(found[0], settings, evaluation_set) if scale_by_f1 else None

    oracle = _oracle(sae, evaluation_set)
    found = find(oracle)
    planted = [sae.config.d_sae + place for place in range(len(found[1]))]
    told = [_with_main(split, latent) for split, latent in zip(found[1], planted, strict=True)]

    def measured() -> Iterator[GradedSae]:
        yield GradedSae("probes", 0.0, _probes_as_latents(evaluation_set))
        yield GradedSae("oracle", 0.0, figures(oracle, found, second(found)))
        yield GradedSae("told oracle", 0.0, figures(oracle, (found[0], told), None))
        for share, absorbing in zip(ABSORBED, _absorbing(oracle, evaluation_set, settings.seed), strict=True):
            main = find(absorbing)
            known = _planted(absorbing, main[1], scale[0], evaluation_set)
            yield GradedSae("absorbing", share, figures(absorbing, main, second(main)) | known)
        by_f1 = second(on_concepts)  # decoder rows change nothing of what fires
        yield GradedSae("baseline", 0.0, figures(sae, on_concepts, by_f1))
        for share in SHARES:
            permuted = permuted_sae(sae, share, settings.seed)
            yield GradedSae("permuted", share, figures(permuted, on_concepts, by_f1))
        for share in SHARES:
            dropped = dropped_sae(sae, share, settings.seed)
            main = find(dropped)
            yield GradedSae("dropped", share, figures(dropped, main, second(main)))

    saes: list[GradedSae] = []
    with Progress("controls", 4 + len(ABSORBED) + 2 * len(SHARES), "SAE") as bar:
        for graded in measured():
            saes.append(graded)
            bar.update(1)
    return Grades(saes, _found(found[1], planted, scale[0], evaluation_set))


def _found(
    splits: Sequence[Split], planted: Sequence[int], common: Sequence[int], evaluation_set: EvaluationSet
) -> list[tuple[str, bool]]:
    """`Grades.planted` of the oracle, of which the splits are."""
    return [
        (candidates.probe.name, latent in split.ranking[:k])
        for candidates, split, latent, k in zip(evaluation_set.candidates, splits, planted, common, strict=True)
    ]


def _with_main(split: Split, latent: int) -> Split:
    """As if this latent alone had been found."""
    others = [other for other in split.ranking if other != latent]
    return Split([latent], [latent, *others], [], [math.nan] * (len(split.ranking) + 1))


def _absorbing(oracle: PlantedSAE, evaluation_set: EvaluationSet, seed: int) -> list[PlantedSAE]:
    """Absorbers are chosen on the rows of a concept's own set: test words too, as what fires on other words alone takes
    nothing from these."""
    rows = [concepts.rows.x.split(batch_rows(oracle)) if concepts.used else () for concepts in evaluation_set.sets]
    probes = [evaluation_set.places(number) for number in range(len(evaluation_set.sets))]
    return absorbing_saes(oracle, ABSORBED, rows, probes, [*some_rows(evaluation_set.read, oracle)], seed)


def _planted(
    absorbing: PlantedSAE, splits: Sequence[Split], common: Sequence[int], evaluation_set: EvaluationSet
) -> dict[str, float]:
    """`PLANTED` of one SAE, of which the splits are."""
    holes, taken, absorbers = [], 0, absorbing.absorbers.cpu()
    for place, (candidates, split, k) in enumerate(zip(evaluation_set.candidates, splits, common, strict=True)):
        main = [latent for latent in split.ranking[:k] if latent < len(absorbers)]
        taken += bool(absorbers[main, place].any())
        if len(candidates.rows):
            x = candidates.x.to(absorbing.W_dec).split(batch_rows(absorbing))
            silent = torch.cat([absorbing.logits(rows)[:, place] <= 0 for rows in x]).cpu()
            holes.append(type_mean(silent, candidates.token_id))
    figures = (fmean(holes) if holes else math.nan, float(absorbers.any(0).sum()), float(taken))
    return dict(zip(PLANTED, figures, strict=True))


def some_rows(read: Reader, sae: SAE) -> Iterator[torch.Tensor]:
    """The first held-out rows, the same for SAEs of any width, as many at once as this one allows."""
    return take_rows(read(min(batch_rows(sae), ROWS)), ROWS)


def _oracle(sae: SAE, evaluation_set: EvaluationSet) -> PlantedSAE:
    weight = torch.stack([candidates.probe.weight for candidates in evaluation_set.candidates], 1).to(sae.W_dec)
    bias = torch.tensor([candidates.probe.bias for candidates in evaluation_set.candidates]).to(sae.W_dec)
    return oracle_sae(sae, weight, bias, (x.to(sae.W_dec) for x in some_rows(evaluation_set.read, sae)))


def _probes_as_latents(evaluation_set: EvaluationSet) -> dict[str, float]:
    """F1, recall and precision of the probes themselves, which bound those of the oracle's latents."""
    scores: list[MainLatents] = []
    for candidates in evaluation_set.candidates:
        rows, probe = evaluation_set.sets[candidates.set].rows, candidates.probe
        test = rows.subset == TEST
        logit = (rows.x[test] @ probe.weight + probe.bias)[:, None]
        codes = firing_codes(logit, torch.zeros_like(logit, dtype=torch.long), 1)
        scores.append(main_latents(codes, rows.labels[test, candidates.concept], [0]))
    return {
        "main_f1": fmean(candidates.probe.f1 for candidates in evaluation_set.candidates),
        "main_recall": fmean(score.recall for score in scores),
        "main_precision": fmean(score.precision for score in scores),
    }


# --- in words


def order_sentences(saes: Sequence[GradedSae]) -> dict[str, tuple[bool, str]]:
    """Outcome -> whether it puts the oracle first and every spoilt SAE in its place, and a sentence that says so.

    FVU does not place the oracle, whose L0 is higher.
    """
    by_kind: dict[str, list[GradedSae]] = {}
    for sae in saes:
        by_kind.setdefault(sae.kind, []).append(sae)
    sentences, known = {}, by_kind["baseline"][0].values
    for key in (*ORDERED, *(by_f1 for by_f1 in BY_F1.values() if math.isfinite(known.get(by_f1, math.nan)))):
        value, oracle = known[key], by_kind["oracle"][0].values[key]
        sign = 1 if METRICS[key].better == "lower" else -1
        ladders = {what: [value, *(sae.values[key] for sae in by_kind.get(kind, ()))] for kind, what in SPOILT.items()}
        clauses = [_clause(what, ladder, sign) for what, ladder in ladders.items()]
        spoilt = [figure for ladder in ladders.values() for figure in ladder[1:]]
        words = [words for _, words in clauses]
        if key in MOVES_WITH_L0:  # the oracle has its planted latents beside the trained ones, and so a higher L0
            first, words = True, [*words, "the oracle is not placed by it, as more of its latents fire"]
        else:
            first, place = _place_of_oracle(oracle, value, spoilt, sign)
            words = [place, *words]
        sentences[key] = (first and all(right for right, _ in clauses), f"{METRICS[key].label}: {'; '.join(words)}.")
    return sentences


def _place_of_oracle(oracle: float, baseline: float, spoilt: Sequence[float], sign: int) -> tuple[bool, str]:
    """Whether it is before the baseline and every spoilt SAE, and words that say so. sign: 1 where lower is better."""
    numbers = f"({_number(oracle)}, the baseline {_number(baseline)}"
    if not sign * (baseline - oracle) > SAME:
        return False, f"does not put the oracle before the baseline {numbers})"
    as_good = [value for value in spoilt if sign * (value - oracle) <= SAME]
    if as_good:
        best = min(as_good) if sign > 0 else max(as_good)
        return False, (
            f"puts the oracle before the baseline, but not before {len(as_good)} of {len(spoilt)} spoilt SAEs "
            f"{numbers}, the best of those {_number(best)})"
        )
    return True, f"puts the oracle first {numbers})"


def _clause(what: str, ladder: Sequence[float], sign: int) -> tuple[bool, str]:
    """ladder: the baseline's figure, and those of copies spoilt more and more. sign: 1 where lower is better."""
    numbers = f"{_number(ladder[0])}, then {', '.join(map(_number, ladder[1:]))}"
    if any(not math.isfinite(value) for value in ladder):
        return False, f"is not known for all {what}"
    if all(abs(value - ladder[0]) <= SAME for value in ladder):
        return False, f"does not see {what} at all (all {_number(ladder[0])})"
    worse = sign * (ladder[-1] - ladder[0])
    wrong = max(sign * (before - after) for before, after in pairwise(ladder))
    if worse > SAME and wrong <= SAME:
        return True, f"orders {what} ({numbers})"
    if worse > SAME:
        return False, f"does not order {what} throughout ({numbers}: up to {wrong:.2g} the wrong way)"
    return False, f"does not order {what}: spoilt ones look better ({numbers})"


def _number(value: float) -> str:
    return f"{value:.3g}"


def control_remarks(grades: Grades) -> list[str]:
    """What else the controls say: whether the oracle's latents are found, and what spoilt SAEs would pass for."""
    by_kind = {sae.kind: sae.values for sae in grades.saes}
    remarks = []
    missed = [name for name, found in grades.planted if not found]
    if missed:
        told = by_kind["told oracle"]
        remarks.append(
            f"The choice of main latents misses the oracle's own latent of {len(missed)} of {len(grades.planted)} concepts "
            f"({', '.join(missed)}); given all of them, its hole rate at equal false alarms is "
            f"{_number(told['equal_hole_rate'])}, its fraction "
            f"{_number(told['absorption_fraction'])}."
        )
    if absorbing := [sae.values for sae in grades.saes if sae.kind == "absorbing"]:
        remarks.append(_planted_remark(by_kind["oracle"], absorbing, len(grades.planted)))
    spoilt = [sae for sae in grades.saes if sae.kind in SPOILT]
    passing = [sae for sae in spoilt if _both_lower(sae.values, by_kind["baseline"])]
    names = ", ".join(f"{sae.share:.0%} {SPOILT[sae.kind]}" for sae in passing)
    remarks.append(
        f"Hole rate at equal false alarms and fraction, which have to fall together before a report says less absorption, "
        f"are both lower than the baseline's in {len(passing)} of {len(spoilt)} spoilt SAEs{f' ({names})' if names else ''}."
    )
    return remarks


def _planted_remark(oracle: Mapping[str, float], absorbing: Sequence[Mapping[str, float]], concepts: int) -> str:
    """What is seen of the absorption that was planted. It is not placed: with more than one main latent a concept, those
    that absorb may be chosen too, and then it is split."""
    if not any(values["planted_in"] for values in absorbing):
        return "No absorption could be planted in the oracle: no latent fires with one of these concepts alone."
    holes, n, taken = (", ".join(_number(values[key]) for values in absorbing) for key in PLANTED)
    seen = "; ".join(
        f"{METRICS[key].label} has {', '.join(_number(values[key]) for values in absorbing)}, and {_number(oracle[key])} without"
        for outcome in ("equal_hole_rate", "absorption_fraction")
        for key in (outcome, BY_F1[outcome])
        if math.isfinite(oracle.get(key, math.nan))
    )
    return (
        f"Absorption was planted in the oracle, in {n} of {concepts} concepts: its latents are silent on {holes} of the rows that "
        f"have a concept, and latents that hardly fire elsewhere carry it: {seen}. In {taken} concepts one of these is among the "
        "main latents, which counts as splitting."
    )


def _both_lower(values: Mapping[str, float], baseline: Mapping[str, float]) -> bool:
    return all(values[key] < baseline[key] - SAME for key in ("equal_hole_rate", "absorption_fraction"))
