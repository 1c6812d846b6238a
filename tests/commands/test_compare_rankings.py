"""A folder of runs compared with main latents found by the L1 probe, by the F1 of their firing, and by both."""

import pytest
from compare_runs import comparing, two_arms

from sae_lm.commands.compare import compare
from sae_lm.comparison.controls import ORDERED
from sae_lm.comparison.outcomes import BY_F1

pytestmark = pytest.mark.transformer_lens_3


@pytest.fixture(scope="module")
def by_ranking(tiny_store, tmp_path_factory, few_words):
    """Ranking -> the report of the same runs."""
    out = tmp_path_factory.mktemp("rankings")
    runs = two_arms(tiny_store, out / "tiny")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sae_lm.pages.figures.write_figures", lambda report, folder: [])
        return {
            ranking: compare(comparing(runs, out / ranking, rank_latents=ranking))
            for ranking in ("l1_probe", "f1", "both")
        }


def test_a_report_says_where_main_latents_are_not_ranked_as_ever(by_ranking):
    told = [
        said
        for said in by_ranking["f1"]["partial"]
        if said.startswith("Main latents are ranked by the F1 of their firing")
    ]
    assert len(told) == 1 and not any("are ranked by" in said for said in by_ranking["l1_probe"]["partial"])


def test_ranked_twice_both_figures_are_those_of_either_ranking_alone(by_ranking):
    by_probe, by_f1, both = by_ranking.values()
    keys = (
        "splits",
        "equal_hole_rate",
        "absorption_fraction",
        "absorption_fraction_ungated",
        "equal_hole_rate_reached",
    )
    for arm, of in both["arms"].items():
        for key in keys:
            assert of["values"][key] == by_probe["arms"][arm]["values"][key]
            assert of["values"][f"{key}_by_f1"] == by_f1["arms"][arm]["values"][key]
            assert set(by_probe["arms"][arm]["values"][f"{key}_by_f1"]) == {None}
    assert any(said.startswith("Main latents are ranked twice") for said in both["partial"])


def test_false_alarms_are_reached_where_rows_of_pre_activations_above_0_suffice(by_ranking):
    both = by_ranking["both"]
    measured = [concept for concept in both["per_concept"] if concept["arm"] in both["arms"]]
    for concept in measured:
        assert concept["reached"] == (concept["gate_ratio"] >= 0)
    for arm, of in both["arms"].items():
        for place, seed in enumerate(both["seeds"]):
            mine = [of["reached"] for of in measured if (of["arm"], of["seed"]) == (arm, seed)]
            assert of["values"]["equal_reached"][place] == pytest.approx(sum(mine) / len(mine))


def test_ranked_twice_so_are_saes_whose_place_is_known(by_ranking):
    _, by_f1, both = by_ranking.values()
    mine, theirs = (
        {(sae["kind"], sae["share"]): sae["values"] for sae in each["grades"]["saes"]} for each in (both, by_f1)
    )
    for place in mine.keys() - {("probes", 0.0), ("told oracle", 0.0)}:
        for key in ("splits", "equal_hole_rate", "absorption_fraction"):
            assert mine[place][f"{key}_by_f1"] == theirs[place][key] and theirs[place][f"{key}_by_f1"] is None
    assert [order["metric"] for order in both["grades"]["orders"]] == [*ORDERED, *BY_F1.values()]
