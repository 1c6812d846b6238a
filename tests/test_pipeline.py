"""text -> report on a tiny model: the verbs together, twice, and what each refuses."""

import json
import re
import shutil

import pytest
import torch
from train_runs import weights

import sae_lm
from sae_lm.commands.cache import cache
from sae_lm.commands.compare import compare
from sae_lm.commands.train import train
from sae_lm.comparison.outcomes import METRICS
from sae_lm.errors import SaeError, SettingsError, StoreError
from sae_lm.settings import CompareSettings, TrainSettings

pytestmark = pytest.mark.transformer_lens_3

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
    later = train(training(tiny_store, alone, arms="abs_cos:1"))
    train(training(tiny_store, later, arms="none", seeds=1))  # one seed less than the others
    log = (later / "max_cos_0.5-seed0.metrics.jsonl").read_text()
    partial = compare(comparing(later, tmp_path))
    assert partial["seeds"] == [0] and "none-seed1 missing" in partial["partial"][0]
    train(training(tiny_store, later, arms="none"))
    assert weights(later) == weights(runs) and (later / "max_cos_0.5-seed0.metrics.jsonl").read_text() == log
    assert set(compare(comparing(later, tmp_path))["arms"]) == {"none", "abs_cos:1", "max_cos:0.5"}


def test_a_damaged_sae_is_not_taken_for_done(runs, tiny_store, tmp_path):
    copy = shutil.copytree(runs, tmp_path / "runs")
    victim = copy / "none-seed0" / "sae_weights.safetensors"
    content = bytearray(victim.read_bytes())
    content[-2] ^= 1
    victim.write_bytes(bytes(content))
    with pytest.raises(SaeError, match="none-seed0 is damaged"):
        train(training(tiny_store, copy))
    with pytest.raises(SaeError, match="does not match its checksum"):
        sae_lm.load(copy / "none-seed0")
    victim.unlink()
    with pytest.raises(SaeError, match="missing"):
        train(training(tiny_store, copy))


def test_held_out_rows_do_not_reach_the_training(tiny_store, tmp_path):
    """Other held-out rows, same training rows: the same weights."""
    from safetensors.torch import load_file, save_file

    from sae_lm.data.manifest import MANIFEST

    changed = shutil.copytree(tiny_store, tmp_path / "changed")
    store = sae_lm.open_store(tiny_store)
    _, row = store.held_out_from(0.2)
    last = len(store.manifest.shards) - 1
    assert store.first_row[last] > row
    path = changed / HOOK / f"{last:05d}.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "rows": tensors["rows"] * 100, "sum": tensors["sum"] * 100}, path)
    assert (changed / MANIFEST).read_text() == (tiny_store / MANIFEST).read_text()  # sizes are the same
    a, b = (train(training(s, tmp_path / n, arms="none", seeds=1)) for s, n in ((tiny_store, "a"), (changed, "b")))
    assert weights(a) == weights(b)


def test_a_killed_training_leaves_no_half_sae_and_finishes_on_the_next_call(runs, tiny_store, tmp_path, monkeypatch):
    from sae_lm.commands import train as module

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
    partial = compare(comparing(tmp_path / "runs", tmp_path))
    assert list(partial["arms"]) == ["none", "abs_cos:1"] and "max_cos:0.5: no SAE is there" in partial["partial"][0]
    monkeypatch.setattr(module, "save", real)
    train(training(tiny_store, tmp_path / "runs"))
    assert weights(tmp_path / "runs") == weights(runs)


def test_the_metrics_log_has_every_arm_and_falls(runs):
    for name in weights(runs):
        lines = [json.loads(line) for line in (runs / f"{name}.metrics.jsonl").read_text().splitlines()]
        assert len(lines) > 1 and lines[-1]["fvu"] < 0.7 * lines[0]["fvu"]
        assert ("penalty" in lines[-1]) == (not name.startswith("none"))


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"k": 64}, SettingsError, "k is 64, more than the 48 latents"),
        ({"batch_size": 1400}, SettingsError, "fewer than one batch of 1,400"),
        ({"tokens": 10}, SettingsError, "tokens is 10, fewer than one batch"),
        ({"arms": "none,max_kos"}, SettingsError, "unknown penalty 'max_kos'"),
        ({"arms": "max_cos,max_cos:0.25"}, SettingsError, "a second time; name each arm once"),
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
def half_held_out(tiny_store, tmp_path_factory):
    """Runs with half of the store held out: 750 rows have enough token types for a concept or two."""
    return train(training(tiny_store, tmp_path_factory.mktemp("half") / "runs", held_out=0.5))


@pytest.fixture(scope="module")
def report(half_held_out, tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    settings = CompareSettings(
        runs=half_held_out,
        out=out,
        model=str(tiny_model),
        min_words=1,
        probe_gate=0.5,
        per_type=20,
        ce_contexts=8,
        seed=4,
    )
    return compare(settings), out


def test_the_report_has_every_metric_for_every_run_and_the_control(report):
    values, out = report
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(values))
    assert set(values["arms"]) == {"none", "abs_cos:1", "max_cos:0.5"}
    for arm in values["arms"].values():
        assert list(arm["values"]) == list(METRICS)
        assert all(len(per_seed) == 2 for per_seed in arm["values"].values())
    assert values["controls"]["random"]["fvu"] > values["arms"]["none"]["values"]["fvu"][0]
    verdicts = {d["verdict"] for d in values["differences"]}
    assert "no claim" in verdicts and verdicts <= {"no claim", "L0 not matched"}  # two seeds
    assert (out / "report.html").stat().st_size > 1000


def test_the_reports_numbers_are_those_of_the_saes(report, half_held_out, tiny_store):
    values, _ = report
    store = sae_lm.open_store(tiny_store)
    sae = sae_lm.load(half_held_out / "abs_cos_1-seed1")
    x = store.rows(HOOK, sae.config.metadata["training"]["held_out_from_row"])
    z = sae.encode(x)
    assert values["arms"]["abs_cos:1"]["values"]["l0"][1] == pytest.approx(
        float((z > 0).sum(1).float().mean()), rel=1e-5
    )
    assert values["arms"]["abs_cos:1"]["values"]["dead"][1] == pytest.approx(float((z == 0).all(0).float().mean()))
    assert values["arms"]["abs_cos:1"]["values"]["nmse"][1] == pytest.approx(
        float((x - sae(x)).square().sum() / x.square().sum()), rel=1e-4
    )


def test_the_table_names_every_arm_metric_and_verdict(report):
    from sae_lm.pages.terminal import text_table

    table = text_table(report[0])
    for word in ("none", "abs_cos:1", "max_cos:0.5", "hole rate", "no claim with 2 seeds"):
        assert word in table


def comparing(runs, out, **changes):
    return CompareSettings(**{"runs": runs, "out": out / "report", "model": "none", **changes})


def test_without_a_language_model_the_rest_is_still_compared(runs, tmp_path):
    values = compare(comparing(runs, tmp_path))
    assert values["cross_entropy"] is None and values["arms"]["none"]["values"]["ce_spliced"] == [None, None]
    assert values["arms"]["none"]["values"]["fvu"][0] > 0


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
    with pytest.raises(SaeError, match="has width 24, the store was cached from one with 16"):
        compare(comparing(runs, tmp_path, model=str(wide)))


def test_a_local_model_is_asked_for_and_recognised_by_its_weights(runs, tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(SaeError, match="a local model folder named 'tiny-gpt2'; give its path with --model"):
        compare(comparing(runs, tmp_path, model=None))
    tuned = shutil.copytree(tiny_model, tmp_path / "tiny-gpt2")
    tensors = load_file(tuned / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, tuned / "model.safetensors", {"format": "pt"})
    with pytest.raises(SaeError, match="has checksum of the weights"):
        compare(comparing(runs, tmp_path, model=str(tuned)))


@pytest.mark.parametrize("content", ["{}", "[]", '{"arms": ["none"], "seeds": "3", "store": "x"}', "{"])
def test_a_run_json_that_is_not_understood_is_one_sentence(runs, tmp_path, content):
    copy = shutil.copytree(runs, tmp_path / "runs")
    (copy / "run.json").write_text(content)
    with pytest.raises(SaeError, match="run.json"):
        compare(comparing(copy, tmp_path))


def test_concepts_that_one_part_of_the_split_lacks_are_skipped_with_the_reason(runs, tmp_path):
    values = compare(comparing(runs, tmp_path, min_words=1, probe_gate=0.0))
    reasons = {str(concept["skipped"]) for concept in values["concepts"]}
    assert any(re.fullmatch("no (train|validation) word with it", reason) for reason in reasons), reasons


def test_a_moved_store_is_found_with_store(runs, tiny_store, tmp_path):
    moved = shutil.copytree(tiny_store, tmp_path / "moved")
    assert compare(comparing(runs, tmp_path, store=moved))["store"]["rows"] == 1500
