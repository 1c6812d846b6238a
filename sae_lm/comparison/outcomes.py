"""The metrics of a comparison: for each its label, unit, which way is better, its role, and one sentence."""

from typing import NamedTuple


class Metric(NamedTuple):
    label: str
    unit: str
    better: str | None
    """lower, higher or None"""
    role: str
    """primary: what the question is about, corrected for their number. quality: what the answer costs. check: whether
    the penalty did what it says. context: to read the others by"""
    explain: str


METRICS = {
    "splits": Metric("latents per concept (splitting)", "latents", "lower", "primary",
        "Latents worth having for one concept: each adds more than split_gain to the F1 of those before it."),
    "equal_hole_rate": Metric("hole rate at equal false alarms", "share", "lower", "primary",
        "Share of a type's tokens, mean over types, on which the probe sees the concept and all its main latents are silent, once these are turned up or down to the baseline's false alarms."),
    "absorption_fraction": Metric("absorption, fraction", "share", "lower", "primary",
        "Share of the concept's projection that other latents carry instead of its main ones (SAEBench 0.6.0)."),
    "fvu": Metric("fraction of variance unexplained", "share", "lower", "quality",
        "Mean squared error over mean squared distance from the mean activation."),
    "ce_spliced": Metric("cross-entropy with the SAE", "nats", "lower", "quality",
        "The language model's loss with the reconstruction in place of its activation."),
    "ce_recovered": Metric("cross-entropy recovered", "share", "higher", "quality",
        "1: as good as the model itself; 0: as bad as zeros, which are very bad, so that all values look high."),
    "ce_recovered_from_mean": Metric("cross-entropy recovered, from the mean", "share", "higher", "quality",
        "The same with the mean activation for zeros: a stricter reference, and not the one that others report."),
    "kl": Metric("KL divergence from the model", "nats", "lower", "quality",
        "KL(model || model with the SAE) per token."),
    "kl_recovered": Metric("KL recovered", "share", "higher", "quality", "As cross-entropy recovered, in KL divergence."),
    "main_f1": Metric("F1 of a concept's main latents", "F1", "higher", "quality",
        "How well the main latents together tell the concept on unseen words; where low, absorption says little."),
    "main_recall": Metric("recall of a concept's main latents", "share", "higher", "quality",
        "Share of a concept's tokens, of unseen words, on which any of its main latents fires; no threshold, no probe."),
    "main_precision": Metric("precision of a concept's main latents", "share", "higher", "quality",
        "Of the sampled tokens, of unseen words, on which any main latent fires, the share that have the concept; in running text it is another."),
    "main_false_alarms": Metric("false alarms of a concept's main latents", "share", "lower", "quality",
        "Share of tokens without the concept, by label and by probe, on which any main latent fires: hedging; higher makes few holes cheap."),
    "l0": Metric("latents per token (L0)", "latents", None, "context",
        "Mean number of latents that fire; arms are compared where it is equal."),
    "nmse": Metric("squared error over squared norm", "share", "lower", "quality",
        "As FVU, against the squared norm instead of the variance."),
    "l2_ratio": Metric("norm of reconstruction over norm", "ratio", None, "quality", "Below 1: shrinkage."),
    "bias": Metric("reconstruction bias", "ratio", None, "quality",
        "E||x_hat||^2 / E<x, x_hat>: 1 is unbiased, below 1 is shrinkage (2404.16014)."),
    "dead": Metric("dead latents", "share", "lower", "quality",
        "Share of latents that fire on none of the held-out rows measured; falls as these grow."),
    "dense": Metric("dense latents", "share", "lower", "quality", "Share of latents that fire on more than 10% of rows."),
    "recovered_on_holes": Metric("projection recovered on holes", "ratio", "higher", "quality",
        "Where the main latents are silent, how much of the concept's direction the whole SAE still carries."),
    "nearest_cos": Metric("decoder cosine to nearest, alive", "cosine", None, "check",
        "Mean cosine of a latent's direction to the nearest other among those that fire; random directions score low too, so that low is no merit."),
    "mean_abs_cos": Metric("decoder mean |cos|", "cosine", None, "check", "Mean absolute cosine of all pairs of latents."),
    "mean_sq_cos": Metric("decoder mean cos^2", "cos^2", None, "check", "Mean squared cosine of all pairs of latents."),
    "near_half": Metric("latents with a neighbour", "share", None, "check", "Share with another latent at cosine above .5."),
    "near_duplicates": Metric("near duplicates", "share", None, "check", "Share with another latent at cosine above .9."),
    "composition_rate": Metric("composition rate", "share", None, "check",
        "Variance of the decoder's rows that a meta-SAE of a quarter of the latents, four per row, explains."),
    "seed_stability": Metric("latents found at the next seed", "share", "higher", "check",
        "Share of latents matched one to one, at cosine .7 or more, in the same arm at the next seed; of more than 4,096 latents pairs are each other's nearest."),
    "stable_signal": Metric("signal of latents found at the next seed", "share", "higher", "check",
        "The same by what latents contribute: share of the sum of mean squared strengths that these latents carry."),
    "start_cos": Metric("decoder cosine to its random start", "cosine", None, "check",
        "Mean cosine of a latent's decoder row to the random direction it began at: near 1, it hardly learned."),
    "encoder_start_cos": Metric("encoder cosine to its random start", "cosine", None, "check",
        "The same of encoder rows, which turn more slowly."),
    "fvu_slope": Metric("fall of FVU per doubling of steps", "share", None, "check",
        "By how much the batches' FVU still fell before the learning rate decayed, were the steps doubled."),
    "distinct": Metric("latents not in the baseline", "share", None, "check",
        "Share with no latent of the baseline's next seed at cosine .2; for the baseline itself, what seeds alone do."),
    "split_ratio": Metric("children per latent of the narrower SAE", "latents", None, "check",
        "Of the narrower SAE's latents that are the nearest of any here at cosine .7 or more: of how many."),
    "stitched_novel": Metric("latents that the narrower SAE lacks", "share", None, "check",
        "Of the latents that fire, the share that lowers the narrower SAE's error when added to it alone (stitching)."),
    "hole_rate": Metric("hole rate, plain", "share", None, "context",
        "Share of a type's tokens, mean over types, on which the probe sees the concept and all its main latents are silent; falls for nothing where these fire more often."),
    "hole_rate_at_precision": Metric("hole rate at the baseline's precision", "share", "lower", "context",
        "The same, main latents turned up or down to the baseline's precision; 1 for a concept on which they cannot reach it."),
    "equal_false_alarms": Metric("false alarms where holes are counted", "share", None, "context",
        "What the main latents' false alarms are on unseen words, once equal over all: the check that holes are counted at about equal ones."),
    "equal_reached": Metric("concepts whose false alarms are reached", "share", None, "context",
        "Share of concepts whose main latents reach the baseline's false alarms by some factor; those of the others fire on negative pre-activations there, as no SAE does."),
    "equal_hole_rate_reached": Metric("hole rate at equal false alarms, where all reach them", "share", "lower", "context",
        "Over the concepts alone whose false alarms every SAE reaches by some factor."),
    "equal_hole_rate_reached_by_f1": Metric("hole rate at equal false alarms, where all reach them, ranked by F1", "share", "lower", "context",
        "The same with main latents found by the F1 of their firing (--rank-latents both)."),
    "equal_hole_rate_found": Metric("hole rate at equal false alarms, found concepts", "share", "lower", "context",
        "Over the concepts alone that the SAEs have latents for: main latents with an F1 of .7 or more by either ranking, mean over the baseline's SAEs."),
    "equal_hole_rate_found_by_f1": Metric("hole rate at equal false alarms, found concepts, ranked by F1", "share", "lower", "context",
        "Over the same concepts, with main latents found by the F1 of their firing (--rank-latents both)."),
    "absorption_fraction_found": Metric("absorption, fraction, found concepts", "share", "lower", "context",
        "Over the same concepts: elsewhere it cannot be told whether a concept was absorbed or never learned."),
    "absorption_fraction_found_by_f1": Metric("absorption, fraction, found concepts, ranked by F1", "share", "lower", "context",
        "Over the same concepts, with main latents found by the F1 of their firing (--rank-latents both)."),
    "equal_precision": Metric("precision at equal false alarms", "share", "higher", "context",
        "Precision of the main latents there; fewer holes at a lower one are those of latents that fire where the probe is wrong."),
    "main_firing_rate": Metric("firing rate of a concept's main latents", "share", None, "context",
        "Share of sampled tokens, of unseen words, on which any main latent fires; a few are sampled of each type."),
    "equal_hole_rate_clear": Metric("hole rate at equal false alarms, clear concepts", "share", "lower", "context",
        "Over the concepts alone whose probe has an F1 of .85 or more: a worse probe sees concepts that are not there."),
    "absorption_fraction_clear": Metric("absorption, fraction, clear concepts", "share", "lower", "context",
        "Over the concepts alone whose probe has an F1 of .85 or more."),
    "splits_clear": Metric("latents per concept, clear concepts", "latents", "lower", "context",
        "Over the concepts alone whose probe has an F1 of .85 or more."),
    "probe_rank": Metric("rank correlation of probe F1 and holes", "rho", None, "context",
        "Spearman's, over concepts, of the probe's F1 and the hole rate at equal false alarms; far below 0, weak probes make holes."),
    "splits_by_f1": Metric("latents per concept, ranked by F1", "latents", "lower", "context",
        "The same with main latents found by the F1 of their firing (--rank-latents both)."),
    "equal_hole_rate_by_f1": Metric("hole rate at equal false alarms, ranked by F1", "share", "lower", "context",
        "The same with main latents found by the F1 of their firing (--rank-latents both)."),
    "absorption_fraction_by_f1": Metric("absorption, fraction, ranked by F1", "share", "lower", "context",
        "The same with main latents found by the F1 of their firing (--rank-latents both)."),
    "absorption_fraction_ungated": Metric("absorption, fraction, without gates", "share", "lower", "context",
        "Share of the concept's projection that all other latents together carry instead of its main ones: a penalty on cosines moves what the fraction's gates ask for."),
    "absorption_fraction_ungated_by_f1": Metric("absorption, fraction, without gates, ranked by F1", "share", "lower", "context",
        "The same with main latents found by the F1 of their firing (--rank-latents both)."),
    "absorption_full": Metric("absorption, full", "share", "lower", "context",
        "Share of a type's tokens, mean over types, on which the main latents are silent and a single other latent carries the concept."),
    "absorption_full_own_k": Metric("absorption, full, own split count", "share", "lower", "context",
        "The same with each SAE's own number of main latents; falls when an arm merely splits more."),
    "absorption_fraction_own_k": Metric("absorption, fraction, own split count", "share", "lower", "context",
        "The fraction with each SAE's own number of main latents; falls when an arm merely splits more."),
    "hole_rate_own_k": Metric("hole rate, own split count", "share", "lower", "context",
        "The hole rate with each SAE's own number of main latents; falls when an arm merely splits more."),
    "control_hole_rate": Metric("hole rate of random latents", "share", None, "context",
        "The hole rate if random latents that fire as often stood for the main ones."),
    "control_fraction": Metric("absorption, fraction, of random latents", "share", None, "context",
        "The fraction if random latents that fire as often stood for the main ones."),
    "nearest_cos_all": Metric("decoder cosine to nearest, all", "cosine", None, "context",
        "Over dead latents too, which need not move to look orthogonal."),
    "nearest_cos_spread": Metric("decoder cosine to nearest, same spread", "cosine", None, "context",
        "What random directions with the decoder's own second moments give."),
    "composition_null": Metric("composition rate, random", "share", None, "context",
        "The composition rate of as many random directions, which share nothing."),
    "nearest_cos_null": Metric("decoder cosine to nearest, random", "cosine", None, "context",
        "What as many random directions give."),
    "mean_abs_cos_null": Metric("decoder mean |cos|, random", "cosine", None, "context",
        "What random directions give, about sqrt(2 / (pi d_in)); decoders below it are spread more evenly than chance."),
    "mean_sq_cos_null": Metric("decoder mean cos^2, random", "cos^2", None, "context",
        "What random directions give, 1 / d_in."),
    "nth_projection": Metric("n-th decoder projection", "activation", None, "context",
        "Projection of x - b_dec on decoder directions that d_sae / 8 latents (of the narrowest SAE) exceed on average, where L0 is below that; of SAEs that differ in L0 alone, least at the right L0 (2508.16560)."),
    "absorbed_tokens": Metric("absorbed tokens", "tokens", None, "context",
        "Tokens with full absorption, all concepts together; the next four are of those on which another latent fires too."),
    "absorber_flips": Metric("decision lost without the absorber", "share", None, "context",
        "Share of absorbed tokens on which the probe says no once the absorber is zeroed (SAE with its error term)."),
    "other_flips": Metric("decision lost without another latent", "share", None, "context",
        "The same for the latent of the nearest strength there, taken away at the absorber's strength."),
    "absorber_kl": Metric("KL divergence without the absorber", "nats", None, "context",
        "KL(model || model with the absorber zeroed) of the next token, on a sample of the absorbed tokens."),
    "other_kl": Metric("KL divergence without another latent", "nats", None, "context",
        "The same for that other latent: what a step of this length costs the model anyway."),
    "mse": Metric("mean squared error", "squared activation", "lower", "context",
        "Summed over dimensions, in the units of the activations, which differ between models and hooks."),
    "dense_1": Metric("latents on more than 1% of rows", "share", None, "context",
        "Share of latents that fire on more than 1% of rows; with 10% it is the share of dense latents (SAEBench core)."),
    "dense_firings": Metric("firings of dense latents", "share", None, "context",
        "Share of all firings that are of latents on more than 10% of rows (SAEBench core)."),
    "dense_1_firings": Metric("firings of latents on more than 1% of rows", "share", None, "context",
        "Share of all firings that are of latents on more than 1% of rows (SAEBench core)."),
}  # fmt: skip
"""Metric key -> what it is, in the order of the tables."""


PRIMARY = tuple(key for key, metric in METRICS.items() if metric.role == "primary")


TWINS = {key: f"{key}_by_f1" for key in METRICS if f"{key}_by_f1" in METRICS}
"""Metric -> the same by the other ranking of main latents, where both are asked for; of those that have it."""


BY_F1 = {key: TWINS[key] for key in PRIMARY}
"""`TWINS` of the primary outcomes."""


NOT_OUTCOMES = ("composition_null", "nearest_cos_null", "mean_abs_cos_null", "mean_sq_cos_null")
"""Metrics without a difference: they do not depend on training."""


NOT_TESTED = ("seed_stability", "stable_signal", "distinct")
"""Metrics of an SAE and that of the next seed. Each SAE is in two of their values, so that these are not independent
and t would claim too much (simulated where seeds alone matter: .16 to .19 of null differences at .05)."""


OF_NARROWER = ("split_ratio", "stitched_novel")
"""Metrics of an SAE and a narrower one. Where several SAEs of an arm share one, they are not tested either."""
