"""A folder of runs beside narrower SAEs, with labels of one's own, prompts and places, and with all metrics asked for."""

import csv
import shutil

import pytest
import torch
from compare_runs import HOOK, comparing, two_arms

import sae_lm
from sae_lm.commands.compare import compare
from sae_lm.commands.train import train
from sae_lm.comparison.outcomes import METRICS
from sae_lm.errors import SaeError, SettingsError
from sae_lm.metrics.meta_sae import Composition
from sae_lm.settings import TrainSettings

pytestmark = pytest.mark.transformer_lens_3


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Those of the first report are enough; a dozen drawings take a second."""
    monkeypatch.setattr("sae_lm.pages.figures.write_figures", lambda report, folder: [])


@pytest.fixture(scope="module")
def runs(tiny_store, tmp_path_factory, few_words):
    return two_arms(tiny_store, tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def narrow(tiny_store, tmp_path_factory):
    """Half as wide as `runs`, one rung of the ladder."""
    settings = {
        "hook": HOOK,
        "d_sae": 24,
        "k": 4,
        "tokens": 3000,
        "batch_size": 64,
        "lr": 3e-3,
        "held_out": 0.5,
        "dead_after": 500,
    }
    out = tmp_path_factory.mktemp("narrow") / "runs"
    return train(TrainSettings(store=tiny_store, arms="none@k=4,max_cos:0.5@k=4", seeds=2, out=out, **settings))


def test_a_damaged_narrower_sae_is_named_before_the_long_part_of_the_work(runs, narrow, tmp_path):
    copy = shutil.copytree(narrow, tmp_path / "narrow")
    path = copy / "max_cos_0.5@k=4-seed1" / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SaeError, match="max_cos_0.5@k=4-seed1.* cannot be read"):
        # what the concepts' rows are taken from is asked for later, and is refused
        compare(comparing(runs, tmp_path / "out", narrower=copy, prompts=True))


def test_every_metric_is_measured_where_all_is_asked_for(runs, narrow, tiny_model, tmp_path, monkeypatch):
    # a meta-SAE takes ten seconds to train
    monkeypatch.setattr("sae_lm.comparison.measure.composition", lambda W_dec, alive, seed: Composition(0.5, 0.4))
    monkeypatch.setattr("sae_lm.comparison.concept_subsets.CLEAR", 0.5)
    monkeypatch.setattr("sae_lm.comparison.concept_subsets.FOUND", 0.1)
    monkeypatch.setattr("sae_lm.comparison.concept_subsets.FEWEST_RANKED", 2)
    asked = {"narrower": narrow, "composition": True, "contextual": True, "model": str(tiny_model), "ce_contexts": 4}
    asked |= {"rank_latents": "both"}
    values = compare(comparing(runs, tmp_path / "out", **asked))
    of_narrow = values["arms"]["none@k=4"]["values"], values["arms"]["max_cos:0.5@k=4"]["values"]
    measured = {
        key for per_seed in of_narrow for key, numbers in per_seed.items() if any(n is not None for n in numbers)
    }
    assert measured == METRICS.keys()


def test_latents_are_traced_from_narrower_saes_of_the_next_seed(runs, narrow, tiny_store, tmp_path):
    arms = "none@k=4,max_cos:0.5@k=4"
    values = compare(comparing(runs, tmp_path / "out", narrower=narrow, min_words=10_000))
    found = {(w["arm"], w["seed"], w["to_seed"]) for w in values["widths"]}
    assert found == {(arm, seed, 1 - seed) for arm in arms.split(",") for seed in (0, 1)}
    for w in values["widths"]:
        assert (w["from_latents"], w["to_latents"]) == (24, 48)
        a = sae_lm.load(narrow / f"{w['arm'].replace(':', '_')}-seed{w['seed']}")
        b = sae_lm.load(runs / f"{w['arm'].replace(':', '_')}-seed{w['to_seed']}")
        store = sae_lm.open_store(tiny_store)
        x = store.rows(HOOK, values["training"]["held_out_from_row"], len(store)).float()
        z, error = b.encode(x), (x - a(x)).double()
        change = [
            float((error - z[:, j, None] * b.W_dec[j]).square().sum(1).mean() - error.square().sum(1).mean())
            for j in range(48)
        ]
        fires = (z > 0).any(0)
        share = float((torch.tensor(change) < 0)[fires].double().mean())
        assert w["stitched_novel"] == pytest.approx(share)
        assert values["arms"][w["arm"]]["values"]["stitched_novel"][w["to_seed"]] == w["stitched_novel"]
        cosine = torch.nn.functional.cosine_similarity(
            a.W_dec[(a.encode(x) > 0).any(0)][None], b.W_dec[fires][:, None], dim=2
        )
        for of in w["curve"]:
            assert of["novel"] == pytest.approx(float((cosine.amax(1) < of["threshold"]).double().mean()))
    traced = [g for g in values["genealogy"] if "from_latents" in g]
    assert [(g["from"], g["to"], g["seed"], g["to_seed"]) for g in traced] == [(a, a, 1, 0) for a in arms.split(",")]
    assert values["arms"]["none@k=6"]["values"]["stitched_novel"] == [None, None]
    assert "narrower SAE became" in (tmp_path / "out" / "report.html").read_text()


def test_a_users_labels_are_concepts_and_unknown_tokens_are_told(runs, tiny_store, tmp_path):
    vocabulary = sae_lm.open_store(tiny_store).vocabulary
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["token", "label", "child"])
        table.writerows([text, "mine", "of mine"] for text in sorted({t for t in vocabulary if t.strip().isalpha()}))
        table.writerow(["surely no token", "mine", ""])
    values = compare(comparing(runs, tmp_path / "out", labels=tmp_path / "labels.csv"))
    assert [c["kind"] for c in values["concepts"] if c["name"] == "mine"] == ["csv"]
    assert any("surely no token" in said for said in values["partial"])
    children = {a["child"] for e in values["explorer"] for of in e["absorbers"].values() for a in of}
    assert "of mine" in children and not any(child.strip().isalpha() for child in children)


def test_prompts_without_a_language_model_are_refused(runs, tmp_path):
    with pytest.raises(SettingsError, match="prompts need the language model"):
        compare(comparing(runs, tmp_path, prompts=True))


def test_prompts_and_places_are_measured_like_tokens_in_text(runs, tiny_model, tmp_path):
    changes = {"prompts": True, "contextual": True, "model": str(tiny_model), "ce_contexts": 4, "probe_gate": 0.2}
    values = compare(comparing(runs, tmp_path, **changes))
    kinds = {c["kind"] for c in values["concepts"]}
    assert "token" in kinds and "contextual" in kinds
    of_tokens = {c["name"] for c in values["concepts"] if c["kind"] == "token"}
    before = [event["before"] for e in values["explorer"] if e["concept"] in of_tokens for event in e["events"]]
    assert before and not any(before), "a token alone stands in no text"
