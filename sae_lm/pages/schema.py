"""What report.json holds: the comparison writes it, and pages, figures and the terminal's table read it.

Null stands for what is not known. Version 3 splits what a verdict was in version 2 into verdict and reason.
"""

from typing import Any, TypedDict

from sae_lm.pages.difference_entries import (
    DifferenceEntry,
    EqualFvuEntry,
    FrontierEntry,
    KindEntry,
    OtherConceptsEntry,
    RegisteredEntry,
)

FORMAT, VERSION = "sae_lm comparison", 3


class MetricEntry(TypedDict):
    label: str
    unit: str
    better: str | None
    """lower, higher or null"""
    role: str
    """primary, quality, check or context"""
    explain: str
    """one sentence"""


class ArmEntry(TypedDict):
    family: str
    """name without k"""
    variant: str
    """name without coefficient and k: a penalty and its options"""
    penalty: str
    coefficient: float
    arch: str
    """as it was trained"""
    k: int | None
    pareto: bool
    """no arm has less FVU at its L0"""
    undertrained: str | None
    """how one sees that its SAEs are not trained yet (sae_lm.comparison.undertrained); null for trained ones"""
    values: dict[str, list[float | None]]
    """metric -> one value per seed"""


class NoiseEntry(TypedDict):
    """Standard deviations."""

    evaluation: float | None
    """of one SAE, over documents"""
    evaluation_of_difference: float | None
    """of a paired difference, over documents"""
    training: float | None
    """over seeds"""


class NearestCosines(TypedDict):
    """Histograms of the cosine to the nearest other decoder row, of alive latents at the first seed."""

    edges: list[float]
    """[bins + 1]"""
    arms: dict[str, list[float | None]]
    """share in each bin"""
    null: list[float | None]
    """of as many random directions"""


class ConceptEntry(TypedDict):
    name: str
    kind: str
    types: int
    """token types that have it"""
    words: int
    """words that have it, one or more types each"""
    test_words: int
    """those of them that it is tested on"""
    rows: int
    probe_f1: float | None
    permuted_f1: float | None
    """of the probe's answers by labels that mean nothing, in the best of a hundred permutations"""
    embedding_f1: float | None
    """of a probe on the token's input embedding; null without a language model, and where the concept is not used"""
    skipped: str | None
    """why it is not used, or null"""


class GateEntry(TypedDict):
    """Absorption scores under other gates than the published ones."""

    centred: bool
    cos: float
    share: float
    full: float | None
    fraction: float | None


class _WhereScored(TypedDict, total=False):
    """Missing where no row of the concept can be scored."""

    candidates: int
    """rows that absorption is scored on"""
    types: int
    full: float | None
    fraction: float | None
    ungated_fraction: float | None
    """what all other latents carry, without gates"""
    hole_rate: float | None
    recovered: float | None
    candidates_own_k: int
    types_own_k: int
    full_own_k: float | None
    fraction_own_k: float | None
    ungated_fraction_own_k: float | None
    hole_rate_own_k: float | None
    recovered_own_k: float | None
    control_hole_rate: float | None
    control_fraction: float | None
    equal_hole_rate: float | None
    """at the baseline's false alarms"""
    equal_false_alarms: float | None
    """on unseen words, where they are equal over all types"""
    equal_precision: float | None
    gate_ratio: float | None
    """what main latents are held to there: above 1 turned down, below up, 1 the SAE as it is (0 if it is standard)"""
    reached: bool
    """whether some factor reaches the baseline's false alarms; at a gate_ratio below 0 none does"""
    hole_rate_at_precision: float | None
    splits_by_f1: int
    main_f1_by_f1: float
    """this and the next four: by the other ranking of main latents, where both are asked for"""
    equal_hole_rate_by_f1: float | None
    reached_by_f1: bool
    fraction_by_f1: float | None
    ungated_fraction_by_f1: float | None
    sweep: list[GateEntry]
    """of the first seed"""


class PerConcept(_WhereScored):
    """One SAE on one concept. Keys ending in _own_k are with its own number of main latents, not the common one."""

    arm: str
    """or the control's name"""
    seed: int
    concept: str
    latents: list[int]
    """its own main latents"""
    splits: int
    common_k: int
    """main latents that every SAE is scored with"""
    f1_by_k: list[float]
    main_f1: float | None
    main_recall: float | None
    main_precision: float | None
    firing_rate: float | None
    """share of rows on which a main latent fires"""
    false_alarms: float | None
    """of rows without the concept, by label and by probe"""
    hubs: list[int]
    """main latents that fire on half of all rows or more"""


_From = TypedDict("_From", {"from": str})


class _OfWidths(TypedDict, total=False):
    """Between SAEs of different widths only."""

    from_latents: int
    to_latents: int


class GenealogyEntry(_From, _OfWidths):
    """Where the latents of one SAE come from: from the baseline to every arm, then to itself at the next seed; where
    there are narrower SAEs, from them to the same arm."""

    to: str
    seed: int
    to_seed: int
    threshold: float
    counts: dict[str, int]
    """kept, split, merged, absorbed, novel, lost"""
    trees: list[dict[str, Any]]
    """parent, children (latent, cos, kind)"""


class GradedEntry(TypedDict):
    """An SAE whose place is known beforehand (`sae_lm.comparison.controls`)."""

    kind: str
    """probes, oracle, told oracle, absorbing, baseline, permuted or dropped"""
    share: float
    """of the latents that are spoilt; of a probe's rows that absorbers take at most"""
    values: dict[str, float | None]
    """of metrics; of absorbing ones `sae_lm.comparison.controls.PLANTED` too"""


class OrderEntry(TypedDict):
    """Whether an outcome puts these SAEs in their order."""

    metric: str
    ordered: bool
    sentence: str


class GradesEntry(TypedDict):
    baseline: str
    """the SAE that the others were made from"""
    saes: list[GradedEntry]
    orders: list[OrderEntry]
    remarks: list[str]


class WidthsEntry(TypedDict):
    """What the latents of a narrower SAE became in a wider one of the same arm."""

    arm: str
    seed: int
    """of the narrower SAE"""
    to_seed: int
    from_latents: int
    to_latents: int
    curve: list[dict[str, float | None]]
    """threshold, split_ratio (children per parent that has one), novel, lost"""
    stitched_novel: float | None
    novelty: dict[str, float | None] | None
    """the cosine to the narrower SAE that tells these best: threshold, auc, true_positive, false_positive"""


class ExplorerEntry(TypedDict):
    """`sae_lm.metrics.absorption_events` has what is in them."""

    concept: str
    seed: int
    absorbers: dict[str, list[dict[str, Any]]]
    """of each arm"""
    events: list[dict[str, Any]]


class Report(TypedDict):
    format: str
    version: int
    answer: str
    """one sentence, after the warning where there is one"""
    warning: str | None
    """a sentence on SAEs that are not trained yet, or null"""
    registered: RegisteredEntry | None
    """claims fixed before training, and their answers; null where nothing was"""
    findings: list[str]
    """sentences, one per arm and then on all"""
    partial: list[str]
    """sentences that come before the figures: what is missing, and why, and where the settings are unusual"""
    settings: dict[str, Any]
    """CompareSettings"""
    training: dict[str, Any]
    """what the SAEs' training had in common"""
    store: dict[str, Any]
    """id, rows, held_out_rows, recipe"""
    cross_entropy: dict[str, Any] | None
    """model, tokens, and in nats clean, ablated (zeros), mean_ablated (the mean row)"""
    versions: dict[str, str]
    baseline: str
    """the arm, or family of arms, compared with"""
    seeds: list[int]
    """those that all arms have"""
    text_units: dict[str, str]
    """documents, or blocks of contexts where these are few: what was resampled for the noise of held_out figures and of
    concepts, and how the text of contextual concepts was split; missing in older reports"""
    l0_tolerance: float
    """relative difference of L0 up to which arms count as equals"""
    metrics: dict[str, MetricEntry]
    arms: dict[str, ArmEntry]
    controls: dict[str, dict[str, float | None]]
    """random: an SAE of random directions, at the L0 of the baseline's middle rung; metric -> value"""
    grades: GradesEntry | None
    """a perfect SAE and spoilt ones; null where they were not asked for, and where no concept is in use"""
    differences: list[DifferenceEntry]
    kinds: list[KindEntry]
    """of every arm that is compared, by kind of concept"""
    other_concepts: list[OtherConceptsEntry]
    """of primary differences of three seeds and five concepts or more"""
    frontier: list[FrontierEntry]
    at_equal_fvu: list[EqualFvuEntry]
    noise: dict[str, NoiseEntry]
    """of each metric"""
    nearest_cos: NearestCosines
    concepts: list[ConceptEntry]
    per_concept: list[PerConcept]
    genealogy: list[GenealogyEntry]
    widths: list[WidthsEntry]
    explorer: list[ExplorerEntry]
