"""A folder of runs -> a report: what it holds, what it says of what is damaged, and when."""

import csv
import json
import math
import os
import shutil
import signal
import warnings
from pathlib import Path

import pytest
from compare_runs import HOOK, comparing, two_arms
from safetensors.torch import load_file, save_file

import sae_lm
from sae_lm.commands.cache import cache
from sae_lm.commands.compare import compare
from sae_lm.commands.train import train
from sae_lm.comparison import measure
from sae_lm.comparison.concept_subsets import OF_CLEAR, OF_FOUND
from sae_lm.comparison.controls import ORDERED
from sae_lm.comparison.outcomes import METRICS, NOT_OUTCOMES
from sae_lm.comparison.runs import Run
from sae_lm.errors import SaeError, SaeLmError, SaeLmWarning, SettingsError, StoreError
from sae_lm.pages.difference_entries import DifferenceEntry
from sae_lm.pages.schema import ArmEntry, ConceptEntry, GenealogyEntry, GradesEntry, PerConcept, Report
from sae_lm.runtime.files import write_whole
from sae_lm.runtime.forks import can_fork
from sae_lm.sae.formats.saelens import save
from sae_lm.settings import TrainSettings

pytestmark = pytest.mark.transformer_lens_3

NAN = float("nan")


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Those of the first report are enough; a dozen drawings take a second."""
    monkeypatch.setattr("sae_lm.pages.figures.write_figures", lambda report, folder: [])


@pytest.fixture(scope="module")
def runs(tiny_store, tmp_path_factory, few_words):
    return two_arms(tiny_store, tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def report(runs, tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    return compare(comparing(runs, out, model=str(tiny_model), ce_contexts=24)), out


def test_the_report_holds_what_its_schema_says(report):
    values, out = report
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(values))
    assert (out / "report.html").stat().st_size > 10_000 and list((out / "figures").glob("*.svg"))
    assert (values["format"], values["version"], values["partial"]) == ("sae_lm comparison", 3, [])
    arms = ["none@k=4", "none@k=6", "max_cos:0.5@k=4", "max_cos:0.5@k=6"]
    assert list(values["arms"]) == arms and values["seeds"] == [0, 1]
    assert {(a["family"], a["k"], a["arch"]) for a in values["arms"].values()} == {
        (family, k, "topk") for family in ("none", "max_cos:0.5") for k in (4, 6)
    }
    assert values.keys() == Report.__annotations__.keys()
    for section, kind in (("differences", DifferenceEntry), ("concepts", ConceptEntry), ("genealogy", GenealogyEntry)):
        assert all(kind.__required_keys__ <= entry.keys() <= kind.__annotations__.keys() for entry in values[section])
        assert values[section], section
    assert all(arm.keys() == ArmEntry.__annotations__.keys() for arm in values["arms"].values())
    for concept in values["per_concept"]:
        assert PerConcept.__required_keys__ <= concept.keys() <= PerConcept.__annotations__.keys()
    optional = {"composition_rate", "composition_null", "recovered_on_holes", "split_ratio", "stitched_novel"}
    optional |= {"absorber_flips", "other_flips", "absorber_kl", "other_kl"}  # of absorbed tokens, which may be none
    optional |= {"nth_projection"}  # L0 is not below an eighth of so few latents
    optional |= {key for key in METRICS if key.endswith("_by_f1")}  # not asked for
    optional |= {*OF_CLEAR.values(), "probe_rank"}  # too few concepts here, and weak probes
    optional |= {*OF_FOUND.values()}  # and so tiny an SAE has latents for none
    for arm in values["arms"].values():
        assert list(arm["values"]) == list(METRICS)
        for key, per_seed in arm["values"].items():
            assert len(per_seed) == 2 and (key in optional or None not in per_seed), key
    assert {(d["arm"], d["baseline"]) for d in values["differences"]} == {
        (a, a.replace("max_cos:0.5", "none")) for a in arms[2:]
    }
    claims = {d["metric"]: (d["verdict"], d["reason"]) for d in values["differences"] if d["metric"] not in optional}
    assert set(claims) == METRICS.keys() - optional - set(NOT_OUTCOMES)
    assert set(claims.values()) == {("no claim", "< 3 seeds")}
    unasked = {d["reason"] for d in values["differences"] if d["metric"] == "composition_rate"}
    assert unasked == {"no values"}
    for key in ("equal_hole_rate", "hole_rate", "absorption_fraction", "fvu", "l0", "ce_spliced"):
        assert values["noise"][key]["evaluation"] is not None and values["noise"][key]["training"] is not None, key
    shares = values["nearest_cos"]
    assert set(shares["arms"]) == set(arms) and len(shares["null"]) == len(shares["edges"]) - 1
    assert all(math.fsum(of) == pytest.approx(1) for of in shares["arms"].values())
    assert {(g["to"], g["to_seed"]) for g in values["genealogy"]} == {*((a, 0) for a in arms[1:]), ("none@k=4", 1)}
    used = [c["name"] for c in values["concepts"] if c["skipped"] is None]
    assert used and [e["concept"] for e in values["explorer"]] == used
    assert set(values["explorer"][0]["absorbers"]) == {"none@k=6", "max_cos:0.5@k=6"}
    assert {c["arm"] for c in values["per_concept"]} == {*arms, "random"}
    assert all(("sweep" in c) == (c["seed"] == 0) for c in values["per_concept"])
    assert values["cross_entropy"]["clean"] > 0 and values["controls"]["random"]["fvu"] > 0.3
    assert values["controls"]["random"]["l0"] == round(values["arms"]["none@k=6"]["values"]["l0"][0])


def test_the_report_grades_outcomes_by_saes_whose_place_is_known(report, runs, tmp_path):
    grades = report[0]["grades"]
    assert grades["baseline"] == "none@k=6, seed 0" and grades.keys() == GradesEntry.__annotations__.keys()
    kinds = [sae["kind"] for sae in grades["saes"]]
    oracles = ["probes", "oracle", "told oracle", *["absorbing"] * 3]
    assert kinds == [*oracles, "baseline", *["permuted"] * 4, *["dropped"] * 4]
    by_kind = {sae["kind"]: sae["values"] for sae in grades["saes"]}
    first = {key: of[0] for key, of in report[0]["arms"]["none@k=6"]["values"].items()}
    assert all(by_kind["baseline"][key] == first[key] for key in ("hole_rate", "absorption_fraction", "splits"))
    assert by_kind["told oracle"]["hole_rate"] == by_kind["told oracle"]["absorption_fraction"] == 0
    assert [order["metric"] for order in grades["orders"]] == list(ORDERED) and grades["remarks"]
    used = [concept for concept in report[0]["concepts"] if concept["skipped"] is None]
    assert used and all(concept["embedding_f1"] is not None for concept in used)
    plain = compare(comparing(runs, tmp_path, controls=False))
    assert plain["grades"] is None and {concept["embedding_f1"] for concept in plain["concepts"]} == {None}


def test_every_value_of_the_report_is_a_line_of_the_csv(report):
    values, out = report
    with (out / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        of = values["controls"][row["arm"]] if row["seed"] == "" else values["arms"][row["arm"]]["values"]
        told = of[row["metric"]] if row["seed"] == "" else of[row["metric"]][int(row["seed"])]
        assert float(row["value"]) == told
    there = sum(v is not None for arm in values["arms"].values() for of in arm["values"].values() for v in of)
    assert len(rows) == there + sum(v is not None for v in values["controls"]["random"].values())


def test_every_sae_is_scored_with_the_baselines_number_of_main_latents(report):
    values, _ = report
    for concept in {c["concept"] for c in values["per_concept"]}:
        mine = [c for c in values["per_concept"] if c["concept"] == concept]
        own = [c["splits"] for c in mine if c["arm"].startswith("none")]
        assert {c["common_k"] for c in mine} == {round(sum(own) / len(own))}
        for c in mine:
            if c["splits"] == c["common_k"]:
                assert (c["hole_rate"], c["fraction"]) == (c["hole_rate_own_k"], c["fraction_own_k"])


def test_the_same_comparison_gives_the_same_report(report, runs, tiny_model, tmp_path):
    again = compare(comparing(runs, tmp_path, model=str(tiny_model), ce_contexts=24))
    assert {k: v for k, v in again.items() if k != "settings"} == {
        k: v for k, v in report[0].items() if k != "settings"
    }


@pytest.mark.skipif(not can_fork(), reason="only Linux's libraries bear a fork")
def test_several_processes_give_the_same_report_and_one_that_is_killed_is_done_without(
    report, runs, tiny_model, tmp_path, monkeypatch
):
    first, real = os.getpid(), measure._measure_sae
    told = {"whole": tmp_path / "by another", "killed": tmp_path / "then killed"}

    def measured(*given, **named):
        if os.getpid() != first:
            told[out].touch()
            if out == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)

    monkeypatch.setattr(measure, "_measure_sae", measured)
    for out in told:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SaeLmWarning)
            again = compare(comparing(runs, tmp_path / out, model=str(tiny_model), ce_contexts=24, parallel=3))
        assert {k: v for k, v in again.items() if k != "settings"} == {
            k: v for k, v in report[0].items() if k != "settings"
        }
        assert told[out].exists() and not (tmp_path / out / "measured").exists()


def test_without_any_concept_the_rest_is_reported_and_labelled(runs, tmp_path):
    values = compare(comparing(runs, tmp_path, min_words=10_000))
    warning = values["warning"]  # these SAEs hardly left their start
    assert values["answer"].startswith(f"{warning} No claim on splitting or absorption")
    assert any("none of the" in said and "passed its gate" in said for said in values["partial"])
    assert values["arms"]["none@k=4"]["values"]["fvu"][0] > 0 and values["explorer"] == values["per_concept"] == []


def test_one_seed_and_a_missing_one_make_a_partial_report(runs, tmp_path):
    copy = shutil.copytree(runs, tmp_path / "runs")
    shutil.rmtree(copy / "max_cos_0.5@k=6-seed1")
    values = compare(comparing(copy, tmp_path / "out", min_words=10_000))
    assert values["seeds"] == [0] and "max_cos_0.5@k=6-seed1 missing" in values["partial"][0]
    assert values["differences"] and {d["verdict"] for d in values["differences"]} == {"no claim"}
    assert [g["to_seed"] for g in values["genealogy"]] == [0, 0, 0]


def test_saes_trained_otherwise_are_refused_beside_others_whatever_their_arm(runs, tiny_store, tmp_path):
    copy = shutil.copytree(runs, tmp_path / "runs")
    settings = {
        "hook": HOOK,
        "d_sae": 48,
        "tokens": 3000,
        "batch_size": 64,
        "lr": 3e-3,
        "held_out": 0.5,
        "dead_after": 500,
    }
    again = TrainSettings(store=tiny_store, arms="abs_cos:1@k=4", seeds=1, out=copy, **{**settings, "k": 9})
    assert train(again) == copy, "arms may have k of their own"
    for key, value in (("lr", 0.1), ("tokens", 1280), ("arch", "matryoshka")):
        with pytest.raises(SaeError, match=f"was trained otherwise: .*{key} is .*; give another --out"):
            train(TrainSettings(store=tiny_store, arms="sq_cos:1", seeds=1, out=copy, **{**settings, key: value}))


def no_measuring(*_):
    raise AssertionError("the long part of the work has begun")


@pytest.mark.parametrize("what", ["missing", "cut", "renamed", "reshaped", "gated"])
def test_a_damaged_sae_is_named_before_the_long_part_of_the_work(runs, tmp_path, monkeypatch, what):
    monkeypatch.setattr("sae_lm.commands.compare.measure", no_measuring)
    copy = shutil.copytree(runs, tmp_path / "runs")
    folder = copy / "max_cos_0.5@k=4-seed1"
    path = folder / "sae_weights.safetensors"
    weights, config = load_file(path), json.loads((folder / "cfg.json").read_text())
    del config["metadata"]["weights_sha256"]
    if what == "missing":
        path.unlink()
    elif what == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif what == "renamed":
        save_file({("W_out" if name == "W_dec" else name): value for name, value in weights.items()}, path)
    elif what == "reshaped":
        save_file(weights | {"W_dec": weights["W_dec"][:-1].contiguous()}, path)
    else:
        config["architecture"] = "gated"
    (folder / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(SaeError, match=r"max_cos_0.5@k=4-seed1.*train or download it again"):
        compare(comparing(copy, tmp_path / "out"))


@pytest.mark.parametrize(
    ("value", "says"), [(NAN, "W_dec holds NaN"), (math.inf, "W_dec holds NaN or infinite"), (0.0, None)]
)
def test_weights_that_are_no_numbers_are_told_with_their_sae_and_zeros_are_read(runs, tmp_path, value, says):
    folder = shutil.copytree(runs / "none@k=4-seed0", tmp_path / "broken")
    config = json.loads((folder / "cfg.json").read_text())
    del config["metadata"]["weights_sha256"]
    (folder / "cfg.json").write_text(json.dumps(config))
    weights = load_file(folder / "sae_weights.safetensors")
    weights["W_dec"][3] = value
    save_file(weights, folder / "sae_weights.safetensors")
    if says is None:
        assert not sae_lm.load(folder).W_dec[3].any()
    else:
        with pytest.raises(SaeError, match=f"broken: {says}.*; train or download it again"):
            sae_lm.load(folder)


@pytest.mark.parametrize(("make", "says"), [
    (lambda out: out.write_text("x"), "is a file, expected a folder to write to; give another"),
    (lambda out: (out.mkdir(), (out / "figures").write_text("x")), "figures is a file, expected a folder"),
    (lambda out: (out / "report.html").mkdir(parents=True), "report.html is a folder, where the report's file would be"),
])  # fmt: skip
def test_a_place_that_cannot_take_the_report_is_told_before_the_work(runs, tmp_path, monkeypatch, make, says):
    monkeypatch.setattr("sae_lm.commands.compare.measure", no_measuring)
    make(tmp_path / "out")
    with pytest.raises(SaeLmError, match=says):
        compare(comparing(runs, tmp_path / "out"))


def test_a_folder_that_takes_no_files_is_told_before_the_work(runs, monkeypatch):
    monkeypatch.setattr("sae_lm.commands.compare.measure", no_measuring)
    with pytest.raises(SaeLmError, match="nothing can be written to the folder /proc/self"):
        compare(comparing(runs, Path("/proc/self/report")))


def test_a_report_is_of_one_comparison_whenever_it_is_interrupted(runs, tmp_path, monkeypatch):
    first = comparing(runs, tmp_path / "out", min_words=10_000)
    compare(first)
    (first.out / "figures" / "differences.png").write_bytes(b"of an earlier report")
    (first.out / "figures" / "mine.png").write_bytes(b"mine")
    before = {path: path.read_bytes() for path in first.out.rglob("*") if path.is_file()}

    def interrupted(report, folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as at_the_end:
        at_the_end.setattr("sae_lm.pages.figures.write_figures", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(first.model_copy(update={"seed": 5}))
    now = {path: path.read_bytes() for path in first.out.rglob("*") if path.is_file()}
    assert {path: whole for path, whole in now.items() if path.parent.name != "measured"} == before

    def one_figure(report, folder):
        write_whole(folder / "seeds.png", Path.touch)
        return [folder / "seeds.png"]

    with monkeypatch.context() as with_a_figure:
        with_a_figure.setattr("sae_lm.pages.figures.write_figures", one_figure)
        compare(first.model_copy(update={"seed": 5}))
    now = {path.name for path in first.out.rglob("*") if path.is_file()}
    assert now == {"report.json", "report.csv", "report.html", "mine.png", "seeds.png"}
    assert json.loads((first.out / "report.json").read_text())["settings"]["seed"] == 5


def test_a_comparison_that_was_killed_goes_on_with_what_it_had_measured(
    report, runs, tiny_model, tmp_path, monkeypatch, capsys
):
    settings, loads = comparing(runs, tmp_path / "out", model=str(tiny_model), ce_contexts=24), []
    load = Run.load

    def counted(run, device):
        loads.append(run)
        if len(loads) > 8 + 4 + 1 + 5:  # for cross-entropies, the baseline's main latents, its middle rung, five SAEs
            raise KeyboardInterrupt
        return load(run, device)

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(Run, "load", counted)
        compare(settings)
    parts = {path: path.read_text() for path in (settings.out / "measured").iterdir()}
    blocks = sum('"tensor"' not in text and "splits" not in text for text in parts.values()) - 4
    assert len(parts) == blocks + 4 + 5 and blocks >= 12, "main latents, SAEs"
    damaged = next(path for path, text in parts.items() if "hole_rate" in text and '"tensor"' in text)
    damaged.write_text(parts[damaged].replace("0", "1", 1))
    (settings.out / "measured" / "mine.json").write_text("mine")
    monkeypatch.setattr(Run, "load", load)
    real, measured = measure._measure_sae, []
    monkeypatch.setattr(
        measure, "_measure_sae", lambda *given, **named: measured.append(given[0]) or real(*given, **named)
    )
    finished = compare(settings)
    assert f"{len(parts)} parts of an unfinished comparison are in" in capsys.readouterr().out
    assert {k: v for k, v in finished.items() if k != "settings"} == {
        k: v for k, v in report[0].items() if k != "settings"
    }
    assert len(measured) == 3 + 1 + 1, "the SAEs that lack, the damaged one, and the random control"
    assert [path.name for path in (settings.out / "measured").iterdir()] == ["mine.json"]


@pytest.mark.parametrize("prompts", [False, True], ids=["found among the concepts' rows", "among all"])
def test_rows_that_were_damaged_since_they_were_cached_are_told(runs, tiny_store, tiny_model, tmp_path, prompts):
    copy = shutil.copytree(tiny_store, tmp_path / "store")
    path = sorted((copy / HOOK).glob("*.safetensors"))[-1]
    tensors = load_file(path)
    tensors["rows"][-40:, 0] = NAN
    save_file(tensors, path)
    with pytest.raises(
        StoreError, match=f"{copy} is damaged: rows of {HOOK} hold NaN .*; run sae-lm verify .* --repair"
    ):
        values = {"prompts": True, "per_type": 16} if prompts else {}
        compare(comparing(runs, tmp_path / "out", store=copy, model=str(tiny_model), **values))


def test_tokens_without_a_row_have_no_part_in_the_cross_entropy(cache_settings, tiny_model, tmp_path):
    folder = cache(cache_settings(tmp_path / "store", hooks=(HOOK,), tokens=1500, drop_sinks=1.1))
    settings = {"hook": HOOK, "d_sae": 32, "k": 4, "tokens": 640, "batch_size": 64, "held_out": 0.5}
    runs = train(TrainSettings(store=folder, arms="none", seeds=1, out=tmp_path / "runs", **settings))
    told = compare(comparing(runs, tmp_path / "out", model=str(tiny_model), min_words=10_000, ce_contexts=10**6))
    store = sae_lm.open_store(folder)
    first = told["training"]["held_out_from_context"]
    predicting = ~store.rowless(first, store.manifest.contexts)[:, :-1]
    dropped = predicting.numel() - int(predicting.sum()) - int(store.special(store.blocks(first))[:, :-1].sum())
    assert told["cross_entropy"]["tokens"] == int(predicting.sum()) and dropped > 20


def test_a_label_that_is_the_name_of_a_concept_of_places_is_refused(runs, tmp_path):
    (tmp_path / "labels.csv").write_text("string,label\ncat,inside brackets\n")
    with pytest.raises(SettingsError, match="'inside brackets' is a concept already"):
        compare(comparing(runs, tmp_path / "out", labels=tmp_path / "labels.csv"))


def test_a_text_gone_through_twice_is_told_in_the_report(cache_settings, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat (and the dog did not), as cats do. " * 40)
    store = cache(cache_settings(tmp_path / "store", text=str(text), tokens=5000, repeat=True))
    settings = {"hook": HOOK, "d_sae": 32, "k": 4, "tokens": 640, "batch_size": 64, "held_out": 0.5}
    runs = train(TrainSettings(store=store, arms="none,max_cos", seeds=1, out=tmp_path / "runs", **settings))
    (told,) = [said for said in compare(comparing(runs, tmp_path / "out"))["partial"] if "--repeat" in said]
    assert "held-out rows may be of text that the SAEs were trained on" in told


@pytest.mark.parametrize("copies", [True, False])
def test_the_noise_of_one_document_is_that_of_its_blocks_and_of_copies_unknown(cache_settings, tmp_path, copies):
    from conftest import TEXTS

    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat (and the dog did not), as cats do. " * 100 if copies else "\n".join(TEXTS))
    store = cache(cache_settings(tmp_path / "store", text=str(text), tokens=1200))
    settings = {"hook": HOOK, "d_sae": 32, "k": 4, "tokens": 640, "batch_size": 64, "held_out": 0.5}
    runs = train(TrainSettings(store=store, arms="none,max_cos", seeds=1, out=tmp_path / "runs", **settings))
    report = compare(comparing(runs, tmp_path / "out"))
    noise, told = report["noise"]["fvu"]["evaluation"], "The noise of the evaluation is unknown: "
    assert "context" in report["text_units"]["held_out"]
    assert any(said.startswith(told) for said in report["partial"]) == copies
    assert noise is None if copies else noise > 1e-4


def test_an_sae_all_of_whose_latents_are_dead_is_measured_like_any_other(runs, tmp_path):
    copy = shutil.copytree(runs, tmp_path / "runs")
    sae = sae_lm.load(copy / "max_cos_0.5@k=4-seed1")
    sae.W_enc *= 0
    sae.b_enc -= 1 + sae.b_enc
    save(sae, copy / "max_cos_0.5@k=4-seed1")
    values = compare(comparing(copy, tmp_path / "out", narrower=None))
    of = values["arms"]["max_cos:0.5@k=4"]["values"]
    assert "No latent of max_cos_0.5@k=4-seed1 fires on any held-out row" in values["partial"][0]
    assert (of["l0"][1], of["dead"][1]) == (0, 1) and of["hole_rate"][1] == 1
    assert (of["distinct"][1], of["seed_stability"]) == (None, [0, 0])
    how = {d["l0"] for d in values["differences"] if d["arm"] == "max_cos:0.5@k=4"}
    assert how == {"not matched"}
