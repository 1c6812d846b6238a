"""What is fixed before the first SAE stays fixed."""

import hashlib
import json
import shutil

import pytest

from sae_lm.cli import main
from sae_lm.commands.train import train
from sae_lm.comparison.registered import check_claims
from sae_lm.comparison.runs import read_runs
from sae_lm.errors import SaeError, SettingsError
from sae_lm.settings import TrainSettings
from sae_lm.training import registered as of_registered
from sae_lm.training.registered import Registered, not_registered, read_registered

FIXED = """
[train]
arms = "none,abs_cos:1"
hook = "blocks.1.hook_out"
d_sae = 64
k = 4
seeds = 2
first_seed = 5
tokens = "1k"
batch_size = 64

[[claim]]
sentence = "abs_cos has fewer holes."
metric = "equal_hole_rate"
arm = "abs_cos:1"
expect = "lower"
"""


@pytest.fixture
def registered(tmp_path):
    path = tmp_path / "fixed.toml"
    path.write_text(FIXED)
    return path


@pytest.fixture
def settings(tiny_store, tmp_path, registered):
    def make(**changes):
        fixed = {
            "hook": "blocks.1.hook_out",
            "arms": "none,abs_cos:1",
            "d_sae": 64,
            "k": 4,
            "seeds": 2,
            "first_seed": 5,
            "tokens": "1k",
        }
        places = {"store": tiny_store, "out": tmp_path / "runs", "registered": registered}
        return TrainSettings(**{**fixed, "batch_size": 64, "checkpoint_seconds": 0, **places, **changes})

    return make


def test_runs_keep_the_file_and_every_sae_its_checksum(settings):
    out = train(settings())
    kept = read_registered(out)
    assert kept is not None and kept.text == FIXED
    assert not_registered(out, kept) == []
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == [
        f"{arm}-seed{seed}" for arm in ("abs_cos_1", "none") for seed in (5, 6)
    ]
    assert read_runs(out, "none").seeds == [5, 6]


def test_a_file_changed_after_the_first_sae_is_refused(settings, registered):
    out = train(settings())
    registered.write_text(FIXED.replace("lower", "higher"))
    with pytest.raises(SettingsError, match=r"registered fixed.toml was changed since abs_cos_1-seed5 was begun in"):
        train(settings())
    registered.write_text(FIXED)
    assert train(settings()) == out


def test_a_file_changed_before_the_first_sae_replaces_the_one_before(settings, registered, monkeypatch):
    monkeypatch.setattr("sae_lm.commands.train._train_groups", lambda *_: 1 / 0)
    for text in (FIXED, FIXED.replace("fewer", "by far fewer")):
        registered.write_text(text)
        with pytest.raises(ZeroDivisionError):
            train(settings())
        kept = read_registered(settings().out)
        assert kept is not None and kept.text == text


def test_what_is_registered_holds_when_the_flag_is_left_out(settings):
    train(settings())
    with pytest.raises(SettingsError, match=r"fixes the settings: seeds is 2, asked for 3; leave them as registered"):
        train(settings(registered=None, seeds=3))


@pytest.mark.parametrize(
    "change", [{"lr": 1e-3}, {"tokens": "2k"}, {"arms": "none,abs_cos:1,max_cos:1"}, {"log_every": 9}]
)
def test_no_setting_that_matters_may_differ_from_the_file(settings, change):
    with pytest.raises(SettingsError, match=f"registered fixed.toml fixes the settings: {next(iter(change))} is"):
        train(settings(**change))
    assert not settings().out.exists()


def test_a_file_that_comes_after_an_sae_is_refused(settings):
    train(settings(registered=None))
    with pytest.raises(SettingsError, match=r"comes after abs_cos_1-seed5 was begun .* give another --out"):
        train(settings())


def test_text_altered_in_run_json_is_seen(settings):
    out = train(settings())
    run = json.loads((out / "run.json").read_text())
    run["registered"]["text"] = FIXED.replace("lower", "higher")
    (out / "run.json").write_text(json.dumps(run))
    with pytest.raises(SaeError, match="the registered text was changed"):
        train(settings(registered=None))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (FIXED.replace('expect = "lower"', 'expect = "less"'), "claim 1: expect: Input should be 'lower', 'higher'"),
        (FIXED.replace('arm = "abs_cos:1"', 'arm = "max_cos:1"'), 'claim 1: "max_cos:1" is none of the arms'),
        (FIXED.replace('arm = "abs_cos:1"', 'arm = "abs"'), "claim 1: arm: "),
        (FIXED.replace("equal_hole_rate", "equal_hole_rat"), "claim 1: metric 'equal_hole_rat' is not tested here; "),
        (FIXED.replace("equal_hole_rate", "seed_stability"), "claim 1: metric 'seed_stability' is not tested here; "),
        (FIXED.replace("equal_hole_rate", "composition_null"), "metric 'composition_null' is not tested here; "),
        (FIXED.replace("equal_hole_rate", "main_precision"), "metric 'main_precision' is not tested here; "),
        (FIXED.replace("equal_hole_rate", "split_ratio"), "metric 'split_ratio' is not tested here; "),
        (FIXED.replace('"lower"', '"equivalent"').replace("equal_hole_rate", "splits"), "is not tested for equivalence; "),
        (FIXED.replace("equal_hole_rate", "l0") + 'against = "none"\nfvu = 0.01\n', "'l0' is not tested at equal FVU; "),
        (FIXED.replace('arm = "abs_cos:1"', 'arm = "none"'), "claim 1: none is the baseline itself, which is compared"),
        (FIXED + "fvu = 0.005\n", "claim 1: claim: expected `against` and `fvu` together"),
        (FIXED + "cost = 1\n", "claim 1: cost: unknown key, expected one of sentence"),
        (FIXED.split("[[claim]]")[0], "claims nothing; expected a [[claim]] or more"),
        (FIXED.replace("k = 4", "k = "), "registered fixed.toml: is not valid TOML"),
        (FIXED.replace("d_sae", "d_sea"), "unknown setting 'd_sea'"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_held_to_is_one_sentence(settings, registered, wrong, said):
    registered.write_text(wrong)
    with pytest.raises(SettingsError) as refused:
        train(settings())
    assert said in str(refused.value)
    assert not settings().out.exists()


def test_the_example_in_the_docstring_is_a_file_that_can_be_held_to():
    _, _, example = of_registered.__doc__.partition("::\n")
    text = "\n".join(line[4:] for line in example.splitlines() if line.startswith("    ") or not line)
    claims = Registered("example.toml", text).claims
    arms = {name for claim in claims for name in (claim.arm, claim.against) if name}
    whole = Registered("example.toml", f"[train]\narms = {json.dumps(['none', *sorted(arms)])}\n{text}")
    assert len(whole.claims) == 2 and {"silent:1", "none@arch=matryoshka"} == arms
    check_claims(whole)
    settings = TrainSettings(store="s", out="o", arms=whole.sections["train"]["arms"])
    of_registered._check_claims(whole, settings)


def test_one_file_is_both_configuration_and_registration(tiny_store, tmp_path, registered, capsys):
    out = tmp_path / "runs"
    words = ["train", "--config", str(registered), "--registered", str(registered)]
    assert main([*words, "--store", str(tiny_store), "--out", str(out)]) == 0
    assert main([*words, "--store", str(tiny_store), "--out", str(out), "--seeds", "1"]) == 2
    assert "fixes the settings: seeds is 2, asked for 1" in capsys.readouterr().err


def test_the_checksum_is_that_of_the_file_whatever_its_line_ends(settings, registered):
    registered.write_bytes(FIXED.replace("\n", "\r\n").encode())
    kept = read_registered(train(settings()))
    assert kept.sha256 == hashlib.sha256(registered.read_bytes()).hexdigest()
    train(settings())


def test_seeds_of_a_folder_begun_before_a_setting_are_trained_as_its_first_were(settings):
    out = train(settings(whiten=False, registered=None))
    run = json.loads((out / "run.json").read_text())
    run["registered"] = {"file": "fixed.toml", "sha256": hashlib.sha256(FIXED.encode()).hexdigest(), "text": FIXED}
    del run["facts"]["whiten"]  # as the version before that setting wrote it
    (out / "run.json").write_text(json.dumps(run))
    shutil.rmtree(out / "none-seed6")
    with pytest.raises(SettingsError, match="fixes the settings: whiten is false, asked for true"):
        train(settings(registered=None))
    train(settings(registered=None, whiten=False))
    assert (out / "none-seed6").is_dir()


def test_a_precision_that_the_file_leaves_open_is_that_of_the_first_sae(settings, monkeypatch):
    monkeypatch.setattr("sae_lm.training.recipe.has_bfloat16", lambda device: False)
    out = train(settings())
    train(settings(matmul="float32"))
    shutil.rmtree(out / "none-seed6")
    with pytest.raises(SaeError, match='was trained otherwise: matmul is "float32", asked for "bfloat16"'):
        train(settings(matmul="bfloat16"))


def test_a_folder_registered_before_a_check_of_claims_is_finished(settings):
    text = FIXED.replace('arms = "none,abs_cos:1"', 'arms = "none,abs_cos:1,abs_cos:2"')
    text += 'against = "abs_cos:2"\nfvu = 0.01\n'
    arms = "none,abs_cos:1,abs_cos:2"
    out = train(settings(arms=arms, registered=None))
    run = json.loads((out / "run.json").read_text())
    run["registered"] = {"file": "fixed.toml", "sha256": hashlib.sha256(text.encode()).hexdigest(), "text": text}
    (out / "run.json").write_text(json.dumps(run))
    shutil.rmtree(out / "none-seed6")
    train(settings(arms=arms, registered=None))
    assert (out / "none-seed6").is_dir()
    shutil.rmtree(out)
    registered = settings().registered
    registered.write_text(text)
    with pytest.raises(SettingsError, match="claim 1: abs_cos:1 and abs_cos:2 lie on one curve"):
        train(settings(arms=arms))
