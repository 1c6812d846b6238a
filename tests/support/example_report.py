"""A report made by hand: small, whole, with numbers that are easy to say, and with texts that try to break a page."""

import math
import re
from typing import Any

METRICS = {
    "hole_rate": ("hole rate", "share", "lower", "primary"),
    "absorption_fraction": ("absorption, fraction", "share", "lower", "primary"),
    "splits": ("latents per concept (splitting)", "latents", "lower", "primary"),
    "fvu": ("fraction of variance unexplained", "share", "lower", "quality"),
    "ce_recovered": ("cross-entropy recovered", "share", "higher", "quality"),
    "dead": ("dead latents", "share", "lower", "quality"),
    "l0": ("latents per token (L0)", "latents", None, "context"),
    "nearest_cos": ("decoder cosine to nearest, alive", "cosine", None, "check"),
}
VERDICTS = (
    "lower",
    "higher",
    "not distinguishable (needs about 38 seeds)",
    "L0 not matched",
    "no claim (< 3 seeds)",
    "no claim (no values)",
)
"""Verdict, and its reason in brackets."""
SCRIPT = "<script>alert(1)</script>"
HOSTILE = (
    SCRIPT,
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "\"'`&amp;\\",
    "line\nbreak\ttab\r\x00\x1b[31m",
    "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd",
    "half a pair \ud800",
    "{{ 7 * 7 }}{% raw %}",
    "\u2028\u2029",
)
"""Texts that end a script, open a comment, reorder a line, cannot be encoded, or are a template's."""


MANY = tuple(["none", *(f"{p}:{c}" for p in ("abs_cos", "sq_cos", "max_cos", "coactive") for c in (0.1, 0.3, 1))])
MANY += tuple(f"coactive:{c}@anchored" for c in (0.1, 0.3, 1, 3)) + tuple(f"none@arch={a}" for a in ("relu", "matryoshka", "batchtopk"))  # fmt: skip
"""Arms of twenty looks."""


def make_report(
    families: tuple[str, ...] = ("none", "abs_cos:1", "max_cos:0.25"),
    ks: tuple[int, ...] = (32,),
    seeds: int = 3,
    concepts: int = 2,
    events: int = 3,
) -> dict[str, Any]:
    """Every metric is 0.5, 0.6, 0.7, ... by seed, plus a tenth per arm; L0 is k. Verdicts come in turn."""
    names = {name_of(family, k, ks): (family, k) for k in ks for family in families}
    arms = {
        name: {
            "family": family,
            "variant": re.sub(r":[^@]*", "", family, count=1),
            "penalty": family.partition("@")[0].partition(":")[0],
            "coefficient": float(family.partition("@")[0].partition(":")[2] or 0),
            "arch": "topk",
            "k": k,
            "pareto": place % 2 == 0,
            "undertrained": None,
            "values": {
                key: [float(k)] * seeds if key == "l0" else [0.5 + 0.1 * seed + 0.1 * place for seed in range(seeds)]
                for key in METRICS
            },
        }
        for place, (name, (family, k)) in enumerate(names.items())
    }
    used = ["digit", "capitalised", *(f"concept {number}" for number in range(2, concepts))][:concepts]
    others = [name for name, (family, _) in names.items() if family != families[0]]
    return {
        "format": "sae_lm comparison",
        "version": 3,
        "answer": "Compared with none: less absorption with max_cos:0.25 (FVU +0.0100).",
        "warning": None,
        "findings": [f"{arm}: less absorption; splitting not distinguishable." for arm in others],
        "registered": None,
        "partial": [],
        "settings": {"runs": "my runs", "out": "report", "baseline": families[0], "min_words": 8, "max_k": 7},
        "training": {"hook": "blocks.3.hook_out", "d_sae": 4096, "k": ks[0], "tokens": 900, "held_out_from_row": 900},
        "store": {
            "id": "0123456789abcdef" * 4,
            "rows": 1000,
            "held_out_rows": 100,
            "recipe": {"model": {"id": "a-model"}, "text": {"id": "a-text"}, "hooks": {"blocks.3.hook_out": 8}},
        },
        "cross_entropy": {"model": "a-model", "tokens": 99, "clean": 3.0, "ablated": 9.0},
        "versions": {"sae_lm": "0", "torch": "2"},
        "baseline": families[0],
        "seeds": list(range(seeds)),
        "text_units": {"held_out": "blocks of 3 contexts", "concepts": "documents", "split": "documents"},
        "l0_tolerance": 0.05,
        "metrics": {
            key: {"label": label, "unit": unit, "better": better, "role": role, "explain": f"What {label} means."}
            for key, (label, unit, better, role) in METRICS.items()
        },
        "arms": arms,
        "controls": {"random": {key: 0.123 for key in METRICS}},
        "grades": _grades(next(iter(names))),
        "differences": [
            _difference(arm, name_of(families[0], names[arm][1], ks), key, row, seeds)
            for place, arm in enumerate(others, 1)
            for row, key in enumerate(METRICS)
        ],
        "kinds": [_kind(arm, kind, seeds) for arm in others for kind in ("token", "contextual")],
        "other_concepts": [],
        "frontier": [],
        "at_equal_fvu": [],
        "noise": {key: {"evaluation": 0.002, "training": 0.03} for key in METRICS},
        "nearest_cos": {
            "edges": [number / 10 for number in range(11)],
            "arms": {name: _bump(0.25 + 0.05 * place) for place, name in enumerate(names)},
            "null": _bump(0.2),
        },
        "concepts": [
            *(_concept(name, None) for name in used),
            _concept("ends in -ed", "6 words to be tested on, fewer than 8"),
            _concept("ends in -ly", "7 words to be tested on, fewer than 8"),
        ],
        "per_concept": [
            _per_concept(arm, seed, concept)
            for arm in (*names, "random")
            for seed in range(1 if arm == "random" else seeds)
            for concept in used
        ],
        "genealogy": [_genealogy(next(iter(names)), arm) for arm in others],
        "widths": [],
        "explorer": [
            _explored(concept, seed, list(names), events) for concept in used for seed in range(min(2, seeds))
        ],
    }


def name_of(family: str, k: int, ks: tuple[int, ...]) -> str:
    return f"{family}@k={k}" if len(ks) > 1 else family


def with_frontier(report: dict[str, Any]) -> dict[str, Any]:
    """The report with each arm as a family of its own, compared with the first, and its holes over concepts."""
    pairs = {d["arm"]: d["baseline"] for d in report["differences"]}
    first, *others = pairs
    return report | {
        "other_concepts": [_other_concepts(arm, baseline) for arm, baseline in pairs.items()],
        "frontier": [_frontier(arm, baseline) for arm, baseline in pairs.items()],
        "at_equal_fvu": [_at_equal_fvu(arm, first, pairs[arm]) for arm in others],
    }


def hostile_report() -> dict[str, Any]:
    """Every string of the report that is not a key the page needs tries something."""
    families = ("none" + SCRIPT, 'abs_cos:1"><b onmouseover=alert(1)>', "_$x^1$" + SCRIPT)
    report = make_report(families[:1])
    report = _renamed(
        with_frontier(make_report()), dict(zip(("none", "abs_cos:1", "max_cos:0.25"), families, strict=True))
    )
    for key, metric in report["metrics"].items():
        metric |= {"label": key + SCRIPT, "unit": SCRIPT, "explain": SCRIPT}
    report["answer"] = SCRIPT + "".join(HOSTILE)
    report["findings"], report["partial"] = list(HOSTILE), list(HOSTILE)
    report["versions"] = {SCRIPT: SCRIPT}
    report["store"]["recipe"]["model"] = {"id": SCRIPT, SCRIPT: list(HOSTILE)}
    report["store"]["id"] = report["training"]["hook"] = report["settings"]["runs"] = SCRIPT
    report["cross_entropy"]["model"] = SCRIPT
    for concept in report["concepts"]:
        concept |= {"skipped": concept["skipped"] and SCRIPT, "name": concept["name"] + SCRIPT, "kind": SCRIPT}
    for entry in (*report["per_concept"], *report["explorer"]):
        entry["concept"] += SCRIPT
    for order in report["grades"]["orders"]:
        order["sentence"] = SCRIPT
    report["grades"] |= {"baseline": SCRIPT, "remarks": list(HOSTILE)}
    for difference in report["differences"]:
        difference |= {"verdict": f'"lower"{SCRIPT}', "reason": SCRIPT}
    for of_family in (*report["frontier"], *report["at_equal_fvu"], *report["other_concepts"]):
        of_family |= {key: SCRIPT for key in ("family", "reference", "concept", "reason") if key in of_family}
    for arm in report["arms"].values():
        arm["variant"] += SCRIPT
    for tree in report["genealogy"]:
        tree["trees"][0]["children"][0]["kind"] = SCRIPT
    for entry in report["explorer"]:
        for event, text in zip(entry["events"], HOSTILE * len(entry["events"]), strict=False):
            event |= {"token": text, "before": text, "after": text}
            for side in event["arms"].values():
                side["absorber"] = side["absorber"] and side["absorber"] | {"child": text}
        for absorbers in entry["absorbers"].values():
            for absorber, text in zip(absorbers, HOSTILE, strict=False):
                absorber["child"] = text
    return report


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {names.get(key, key): _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def _difference(arm: str, baseline: str, key: str, row: int, seeds: int) -> dict[str, Any]:
    verdict, _, reason = VERDICTS[row % len(VERDICTS)].rstrip(")").partition(" (")
    return {
        "arm": arm,
        "baseline": baseline,
        "metric": key,
        "per_seed": [0.1] * seeds,
        "mean": -0.125,
        "low": -0.1875,
        "high": -0.0625,
        "p": 0.03125,
        "p_holm": 0.0625 if METRICS[key][3] == "primary" else None,
        "detectable": 0.05,
        "seeds_needed": 38,
        "l0": "matched",
        "verdict": verdict,
        "reason": reason or None,
        "undertrained": False,
    }


def _grades(baseline: str) -> dict[str, Any]:
    kinds = [("probes", 0.0), ("oracle", 0.0), ("told oracle", 0.0)]
    kinds += [*(("absorbing", share) for share in (0.1, 0.2, 0.4)), ("baseline", 0.0)]
    kinds += [(kind, share) for kind in ("permuted", "dropped") for share in (0.25, 0.5, 0.75, 1.0)]
    return {
        "baseline": f"{baseline}, seed 0",
        "saes": [
            {
                "kind": kind,
                "share": share,
                "values": {"hole_rate": None if kind == "probes" else 0.1 * place, "fvu": 0.25}
                | ({"planted_holes": share / 2} if kind == "absorbing" else {}),
            }
            for place, (kind, share) in enumerate(kinds)
        ],
        "orders": [
            {"metric": "hole_rate", "ordered": True, "sentence": "hole rate: puts the oracle first."},
            {"metric": "fvu", "ordered": False, "sentence": "fvu: does not order permuted decoder rows."},
        ],
        "remarks": ["Hole rate and fraction are both lower in 1 of 8 spoilt SAEs."],
    }


def _kind(arm: str, kind: str, seeds: int) -> dict[str, Any]:
    difference = {"per_seed": [0.1] * seeds, "mean": -0.125, "low": -0.1875, "high": -0.0625}
    return {"arm": arm, "metric": "absorption_fraction", "kind": kind, "concepts": 1, **difference}


def _other_concepts(arm: str, baseline: str) -> dict[str, Any]:
    return {
        "arm": arm,
        "baseline": baseline,
        "metric": "hole_rate",
        "concepts": 16,
        "mean": -0.125,
        "low": -0.25,
        "high": 0.0125,
        "for_others": False,
        "without_low": -0.15625,
        "without_high": -0.09375,
        "concept": "digit",
        "sign_changes": False,
        "claim_rests_on": ["digit"],
    }


def _around(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.0125, "high": mean + 0.0125}


def _frontier(arm: str, rung: str) -> dict[str, Any]:
    """Two points: the baseline, and the arm with .01 more FVU and an eighth fewer holes."""
    ends = [(rung, 0.0, 0.0), (arm, 0.01, -0.125)]
    return {
        "family": arm,
        "rung": rung,
        "least_fvu": 0.0,
        "most_fvu": 0.01,
        "points": [
            {"arm": name, "fvu": _around(cost), "changes": {"hole_rate": _around(change)}}
            for name, cost, change in ends
        ],
        "bands": {"hole_rate": [{"fvu": cost, **_around(change)} for _, cost, change in ends]},
    }


def _at_equal_fvu(family: str, reference: str, rung: str) -> dict[str, Any]:
    return {
        "family": family,
        "reference": reference,
        "rung": rung,
        "fvu": 0.005,
        "metric": "hole_rate",
        "change": -0.0625,
        "reference_change": -0.03125,
        "between": [rung, family],
        "reference_between": [rung, reference],
        "per_seed": [-0.03125] * 3,
        "mean": -0.03125,
        "low": -0.0625,
        "high": 0.0,
        "p": 0.05,
        "p_holm": 0.05,
        "verdict": "not distinguishable",
        "reason": "needs about 38 seeds",
        "doubts": [],
        "undertrained": False,
    }


def _bump(centre: float) -> list[float]:
    heights = [math.exp(-(((number + 0.5) / 10 - centre) ** 2) / 0.02) for number in range(10)]
    return [height / sum(heights) for height in heights]


def _concept(name: str, skipped: str | None) -> dict[str, Any]:
    figures = {
        "types": 60,
        "words": 45,
        "test_words": 9,
        "rows": 400,
        "probe_f1": 0.912,
        "permuted_f1": 0.25,
        "embedding_f1": 0.375,
    }
    return {"name": name, "kind": "token", **figures, "skipped": skipped}


def _per_concept(arm: str, seed: int, concept: str) -> dict[str, Any]:
    return {
        "arm": arm,
        "seed": seed,
        "concept": concept,
        "latents": [3, 5],
        "splits": 2,
        "common_k": 2,
        "main_f1": 0.8,
        "candidates": 90,
        "types": 30,
        "full": 0.1,
        "fraction": 0.2,
        "hole_rate": 0.25 + 0.125 * seed,
        "equal_hole_rate": 0.3 + 0.125 * seed,
        "false_alarms": 0.04,
        "recovered": None,
        "sweep": [
            {
                "centred": centred,
                "cos": cos,
                "share": share,
                "full": 0.1,
                "fraction": (0.9 if centred else 0.5) - cos - share / 4,
            }
            for centred in (False, True)
            for cos in (0.0, 0.1)
            for share in (0.0, 0.4)
        ],
    }


def _genealogy(first: str, second: str) -> dict[str, Any]:
    children = [{"latent": 11, "cos": 0.91, "kind": "kept"}, {"latent": 12, "cos": 0.62, "kind": "split"}]
    counts = {"kept": 50, "split": 20, "merged": 10, "absorbed": 5, "novel": 15, "lost": 7}
    trees = [{"parent": 7, "children": children}, {"parent": 8, "children": children}]
    return {"from": first, "to": second, "seed": 0, "to_seed": 0, "threshold": 0.6, "counts": counts, "trees": trees}


def _explored(concept: str, seed: int, arms: list[str], events: int) -> dict[str, Any]:
    """The baseline is silent on every event; others on the second and then every other one."""
    account = {"latent": 77, "child": " The", "cos_probe": 0.21, "cos_parent": 0.05}

    def side(place: int, number: int) -> dict[str, Any]:
        silent = place == 0 or number % 2 == 1
        return {
            "silent": silent,
            "main": [{"latent": 5, "strength": 0.0 if silent else 2.5}],
            "absorber": {**account, "strength": 3.25, "share": 0.61} if silent else None,
        }

    return {
        "concept": concept,
        "seed": seed,
        "absorbers": {arm: [{**account, "events": 12, "child_precision": 0.8}] for arm in arms},
        "events": [
            {
                "token": f" token{number} of {concept}, seed {seed}",
                "before": "he said.\n",
                "after": " and went",
                "arms": {arm: side(place, number) for place, arm in enumerate(arms)},
            }
            for number in range(events)
        ],
    }
