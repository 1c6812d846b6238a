"""text -> report on a tiny model: the verbs together, twice, and what each refuses."""

import json
import shutil

import pytest
import torch

import sae_lm
from sae_lm.caching import cache
from sae_lm.comparison import METRICS, compare
from sae_lm.errors import SaeError, SettingsError, StoreError
from sae_lm.settings import CompareSettings, TrainSettings
from sae_lm.training import train

HOOK = "blocks.1.hook_out"


def training(store, out, **changes):
    values = {
        "store": store,
        "hook": HOOK,
        "d_sae": 48,
        "k": 4,
        "arms": "none,abs_cos:1,max_cos:0.5",
        "seeds": 2,
        "tokens": 6000,
        "batch_size": 64,
        "lr": 3e-3,
        "held_out": 0.2,
        "dead_after": 500,
        "out": out,
    }
    return TrainSettings(**{**values, **changes})


@pytest.fixture(scope="module")
def runs(tiny_store, tmp_path_factory):
    return train(training(tiny_store, tmp_path_factory.mktemp("runs") / "tiny"))


def weights(folder):
    return {p.parent.name: p.read_bytes() for p in sorted(folder.glob("*/sae_weights.safetensors"))}


def test_training_writes_one_sae_per_arm_and_seed_that_explains_held_out_rows(runs, tiny_store):
    assert sorted(weights(runs)) == [
        f"{arm}-seed{seed}" for arm in ("abs_cos_1", "max_cos_0.5", "none") for seed in (0, 1)
    ]
    store = sae_lm.open_store(tiny_store)
    sae = sae_lm.load(runs / "none-seed0")
    facts = sae.config.metadata["training"]
    x = store.rows(HOOK, facts["held_out_from_row"])
    fvu = (x - sae(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert fvu < 0.5
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(48))
    assert facts["store_id"] == store.manifest.id and sae.config.metadata["hook_name"] == HOOK


def test_training_again_gives_the_same_bytes_and_a_second_call_reuses_them(runs, tiny_store, tmp_path, capsys):
    again = train(training(tiny_store, tmp_path / "again"))
    assert weights(again) == weights(runs)
    capsys.readouterr()
    train(training(tiny_store, tmp_path / "again"))
    assert "6 of 6 SAEs are there already; reused" in capsys.readouterr().out


def test_an_arm_trained_alone_or_later_is_the_same_as_in_company(runs, tiny_store, tmp_path):
    alone = train(training(tiny_store, tmp_path / "alone", arms="max_cos:0.5"))
    assert weights(alone) == {name: data for name, data in weights(runs).items() if name.startswith("max_cos")}


def test_a_killed_training_leaves_no_half_sae_and_finishes_on_the_next_call(runs, tiny_store, tmp_path, monkeypatch):
    from sae_lm import training as module

    real, saved = module.save, []

    def dies(sae, folder):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(folder)
        real(sae, folder)

    monkeypatch.setattr(module, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        train(training(tiny_store, tmp_path / "runs"))
    assert len(weights(tmp_path / "runs")) == 2
    with pytest.raises(SaeError, match="unfinished: .*missing; run the same sae-lm train command again"):
        compare(CompareSettings(runs=tmp_path / "runs", out=tmp_path / "report", model="none"))
    monkeypatch.setattr(module, "save", real)
    train(training(tiny_store, tmp_path / "runs"))
    assert weights(tmp_path / "runs") == weights(runs)


def test_the_metrics_log_has_every_arm_and_falls(runs):
    lines = [json.loads(line) for line in (runs / "metrics-seed1.jsonl").read_text().splitlines()]
    assert {line["arm"] for line in lines} == {"none", "abs_cos:1", "max_cos:0.5"}
    plain = [line["fvu"] for line in lines if line["arm"] == "none"]
    assert plain[-1] < 0.7 * plain[0]


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"k": 64}, SettingsError, "k is 64, more than the 48 latents"),
        ({"batch_size": 1400}, SettingsError, "fewer than one batch of 1,400"),
        ({"tokens": 10}, SettingsError, "tokens is 10, fewer than one batch"),
        ({"arms": "none,max_kos"}, SettingsError, "unknown penalty 'max_kos'"),
        ({"arms": "max_cos,max_cos:0.25"}, SettingsError, "names one arm twice"),
        ({"hook": "blocks.2.hook_out"}, StoreError, "no hook 'blocks.2.hook_out'"),
        ({"store": "nowhere"}, StoreError, "does not exist"),
    ],
)
def test_training_refuses_what_cannot_be_before_writing_anything(tiny_store, tmp_path, changes, error, says):
    with pytest.raises(error, match=says):
        train(training(**{"store": tiny_store, "out": tmp_path / "runs", **changes}))
    assert not (tmp_path / "runs").exists()


def test_runs_trained_otherwise_are_not_overwritten(runs, tiny_store):
    before = weights(runs)
    with pytest.raises(SaeError, match="was trained otherwise: k is 4, asked for 5"):
        train(training(tiny_store, runs, k=5))
    assert weights(runs) == before


@pytest.fixture(scope="module")
def report(runs, tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    settings = CompareSettings(
        runs=runs, out=out, model=str(tiny_model), min_types=3, probe_gate=0.0, per_type=20, ce_contexts=8
    )
    return compare(settings), out


def test_the_report_has_every_metric_for_every_run_and_the_control(report):
    values, out = report
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(values))
    assert set(values["arms"]) == {"none", "abs_cos:1", "max_cos:0.5"}
    for arm in values["arms"].values():
        assert list(arm) == list(METRICS)
        for key, per_seed in arm.items():
            assert len(per_seed) == 2, key
            if key != "recovered_on_holes":
                assert all(isinstance(value, float) for value in per_seed), key
    assert values["control"]["fvu"] > values["arms"]["none"]["fvu"][0]
    assert all(d["verdict"].startswith(("no claim", "L0 not matched")) for d in values["differences"])  # two seeds
    assert (out / "report.html").stat().st_size > 1000


def test_the_reports_numbers_are_those_of_the_saes(report, runs, tiny_store):
    values, _ = report
    store = sae_lm.open_store(tiny_store)
    sae = sae_lm.load(runs / "abs_cos_1-seed1")
    x = store.rows(HOOK, sae.config.metadata["training"]["held_out_from_row"])
    z = sae.encode(x)
    assert values["arms"]["abs_cos:1"]["l0"][1] == pytest.approx(float((z > 0).sum(1).float().mean()), rel=1e-5)
    assert values["arms"]["abs_cos:1"]["dead"][1] == pytest.approx(float((z == 0).all(0).float().mean()))
    assert values["arms"]["abs_cos:1"]["nmse"][1] == pytest.approx(
        float((x - sae(x)).square().sum() / x.square().sum()), rel=1e-4
    )


def test_the_table_names_every_arm_metric_and_verdict(report):
    from sae_lm.report import text_table

    table = text_table(report[0])
    for word in ("none", "abs_cos:1", "max_cos:0.5", "hole rate", "no claim (< 3 seeds)"):
        assert word in table


def comparing(runs, out, **changes):
    return CompareSettings(**{"runs": runs, "out": out / "report", "model": "none", **changes})


def test_without_a_language_model_the_rest_is_still_compared(runs, tmp_path):
    values = compare(comparing(runs, tmp_path))
    assert values["cross_entropy"] is None and values["arms"]["none"]["ce_spliced"] == [None, None]
    assert values["arms"]["none"]["fvu"][0] > 0


def test_a_comparison_refuses_what_it_cannot_compare(runs, tmp_path, cache_settings):
    with pytest.raises(SaeError, match="does not exist; write it with sae-lm train"):
        compare(comparing(tmp_path / "nothing", tmp_path))
    with pytest.raises(SaeError, match="not a folder of runs"):
        compare(comparing(tmp_path, tmp_path))
    with pytest.raises(SaeError, match="no arm 'plain' to compare with"):
        compare(comparing(runs, tmp_path, baseline="plain"))
    other = cache(cache_settings(tmp_path / "other", tokens=600))
    with pytest.raises(SaeError, match="is not the one these runs were trained on"):
        compare(comparing(runs, tmp_path, store=other))
    assert not (tmp_path / "report").exists()


def test_a_model_of_another_width_is_refused(runs, tmp_path):
    from conftest import save_tiny_model

    wide = save_tiny_model(tmp_path / "wide", width=24)
    with pytest.raises(SaeError, match="has width 24 and vocabulary 300, the store was cached from one with 16"):
        compare(comparing(runs, tmp_path, model=str(wide)))


def test_a_moved_store_is_found_with_store(runs, tiny_store, tmp_path):
    moved = shutil.copytree(tiny_store, tmp_path / "moved")
    assert compare(comparing(runs, tmp_path, store=moved))["store"]["rows"] == 1500
