"""argv -> settings -> verb: what is accepted, and that every user error is one line and exit code 2."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sae_lm.cli import main, parse, read_config
from sae_lm.commands.cache import cache
from sae_lm.errors import SettingsError
from sae_lm.fields import parse_count
from sae_lm.sae.formats.saelens import save
from sae_lm.settings import VERBS, CacheSettings, ShowSettings, TrainSettings, command_line

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.toml"))


def test_flags_overrides_and_file_are_merged_with_flags_last(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('[train]\nstore = "a"\nout = "b"\nk = 8\nd_sae = 64\nseeds = 2\n[cache]\ntokens = "5k"\n')
    verb, settings = parse(["train", "--config", str(file), "--k", "16", "train.d_sae=1k", "train.seeds=4"])
    assert verb == "train"
    assert (settings.k, settings.d_sae, settings.seeds, settings.store) == (16, 1000, 4, "a")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("200k", 200_000),
        ("1.5M", 1_500_000),
        ("65_536", 65_536),
        ("65,536", 65_536),
        ("1,000k", 10**6),
        ("2b", 2 * 10**9),
        (7, 7),
    ],
)
def test_counts_may_be_written_short(text, number):
    assert parse_count(text) == number


def test_an_estimate_takes_what_its_own_section_leaves_open_from_that_of_cache(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('[cache]\nhooks = "0,1"\ntokens = "5k"\ncontext_size = 64\nout = "acts"\n')
    settings = parse(["estimate", "--config", str(file), "--tokens", "7k"])[1]
    assert (settings.hooks, settings.tokens, settings.context_size, settings.out) == (
        ("0", "1"),
        7000,
        64,
        Path("acts"),
    )
    file.write_text(f"{file.read_text()}[estimate]\ntrial = 0.5\ncontext_size = 32\n")
    settings = parse(["estimate", "--config", str(file)])[1]
    assert (settings.hooks, settings.tokens, settings.context_size, settings.trial) == (("0", "1"), 5000, 32, 0.5)
    assert parse(["cache", "--config", str(file)])[1].context_size == 64


def test_a_file_without_a_section_for_the_verb_is_noted_and_one_with_it_is_not(tmp_path, capsys):
    file, missing = tmp_path / "c.toml", str(tmp_path / "none")
    file.write_text('[train]\nk = 8\n[cache]\nhooks = "0"\n[verify]\nrepair = false\n')
    assert main(["inspect", missing, "--config", str(file)]) == 2
    said = capsys.readouterr().err
    assert (
        f"note: --config {file} has no section [inspect], so nothing of it is used" in said and said.count("note") == 1
    )
    for verb in ("verify", "estimate"):
        assert main([verb, *([missing] if verb == "verify" else []), "--config", str(file)]) == 2
    assert "note" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ["x", "1.5", "-3", "k", "1e6", "", "0,1,2", "16,32", "1,5M", "1,000,00", "٣"])
def test_a_malformed_count_is_refused(text):
    with pytest.raises(ValueError, match="whole number"):
        parse_count(text)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["cache", "--hokks", "a"], "unknown argument '--hokks'; expected '--hooks'"),
        (["compare", "--runs", "x"], "--runs is no flag: give runs by itself, as sae-lm compare RUNS"),
        (["show", "--sae=x"], "--sae is no flag: give sae by itself, as sae-lm show SAE"),
        (["merge", "--stores", "a", "b"], "--stores is no flag: give stores by itself, as sae-lm merge STORES"),
        (["cache", "--out", "x"], "--hooks is required"),
        (
            ["train", "--store", "a", "--out", "b", "--d-sae", "-5"],
            "got '-5'; expected a whole number that is not negative",
        ),
        (["train", "--store", "a", "--out", "b", "--k", "many"], "--k: got 'many'; expected a whole number"),
        (["train", "--store", "a", "--out", "b", "--held-out", "0.9"], "--held-out: got '0.9'; expected less than"),
        (["train", "--store", "a", "--out", "b", "--arch", "gated"], "--arch: got 'gated'; expected 'relu', 'topk'"),
        (["train", "--store", "a", "--out", "b", "train.kk=3"], "unknown setting 'kk'; expected 'k'"),
        (["train", "cache.k=3"], "for another verb"),
        (["train", "tarin.k=3"], "names no verb; expected 'train' (did you mean that?)"),
        (["cache", "--hooks", "a", "b"], "unexpected argument 'b'; lists are comma separated"),
        (["show", "s", "--latents", "1,x"], "--latents: got 'x'; expected a valid integer"),
        (["compare", "--out", "x"], "RUNS is required (folder written by"),
        (["train", "--k"], "argument --k: expected one argument; see sae-lm train --help"),
        (["trian"], "unknown verb 'trian'; expected 'train'"),
        (["cache", "--config", "nowhere.toml"], "nowhere.toml: cannot be read"),
        ([], "VERB"),
    ],
)
def test_a_mistyped_command_line_is_one_line_and_exit_code_2(argv, says, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("sae-lm: error: ") and says in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[train]\nd_sea = 3\n", r"unknown key 'd_sea' in \[train\]; expected 'd_sae'"),
        ("[trian]\n", r"unknown section \[trian\]; expected 'train'"),
        ("[train\n", "not valid TOML"),
        ("k = 3\n", r"k stands outside of any section; put it below its verb's line, such as \[train\]"),
    ],
)
def test_a_mistyped_config_names_the_nearest_key(tmp_path, content, says):
    file = tmp_path / "c.toml"
    file.write_text(content)
    with pytest.raises(SettingsError, match=says):
        read_config(file)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_every_config_parses_and_opens_with_its_command_hardware_and_disk(file):
    sections = read_config(file)
    assert {"train", "compare"} <= set(sections)
    cached = {str(read_config(other)["cache"]["out"]) for other in CONFIGS if "cache" in read_config(other)}
    assert str(sections["train"]["store"]) in cached, "by this file or another"
    for verb in sections:
        parse([verb, "--config", str(file)])
    head = file.read_text().split("\n[", 1)[0]
    for fact in ("sae-lm cache --config", "Hardware:", "Disk:"):
        assert fact in head, f"{file.name} does not say {fact}"
    assert len(CONFIGS) >= 4


def test_the_demo_config_says_what_the_demo_does():
    from sae_lm.commands.demo import demo_settings

    file = Path(__file__).parent.parent / "configs" / "demo.toml"
    for verb, expected in zip(("cache", "train", "compare", "show"), demo_settings(Path("sae_lm_demo")), strict=True):
        assert parse([verb, "--config", str(file)])[1] == expected


def test_settings_cannot_be_changed_after_parsing():
    settings = CacheSettings(hooks="a", tokens=3, out="x")
    with pytest.raises(Exception, match="frozen"):
        settings.tokens = 4


def test_every_setting_says_what_it_is():
    for verb, model in VERBS.items():
        for name, field in model.model_fields.items():
            assert field.description, f"{verb}.{name} has no docstring"


EVERY_SETTING = {
    "convert": {
        "sae": "me/saes:layer_6", "to": "sparsify", "format": "openai", "hook": "blocks.8.hook_out", "k": 32,
        "input_scale": 0.5, "out": "my sae",
    },
    "export": {
        "sae": "me/saes:layer_6", "to": "gguf", "store": "my acts", "latents": "7,9", "tokens": "3k", "model": "gpt2",
        "name": "llama", "strength": -2.5, "module": "h.8", "codes": "c d", "device": "cuda:1", "out": "-out",
    },
    "demo": {"what": "toy", "out": "my demo", "full": True, "seeds": 7},
    "cache": {
        "model": "gpt2", "revision": "main", "text": "a b.txt", "split": "train", "text_column": "it's", "hooks": "-1,0",
        "tokens": "1.5M", "context_size": 64, "prepend_bos": False, "pack": False, "repeat": True, "keep_special": True,
        "drop_sinks": 10.5, "forward": "bridge", "dtype": "float32", "model_dtype": "bfloat16", "batch_size": 3,
        "shard_tokens": "8k", "device": "cuda:1", "device_map": "auto", "out": "-out",
    },
    "train": {
        "store": "hf://datasets/me/acts@v1", "hook": "blocks.1.hook_out", "d_sae": 64, "k": 3, "arch": "matryoshka",
        "widths": "16,64", "sparsity_coefficient": 1e-5, "bandwidth": 0.1, "arms": "none,max_cos:0.5@arch=relu",
        "seeds": 2, "first_seed": 4, "registered": "fixed.toml", "tokens": 9, "batch_size": 8, "lr": 1 / 3, "optimizer": "adam", "whiten": False, "warm_up": 0.5, "decay": 0.0, "held_out": 0.3,
        "penalty_every": 1, "penalty_start": 0.1, "penalty_warm_up": 0.2, "penalty_on": "encoder", "aux_coefficient": 0,
        "aux_k": 4, "dead_after": 5, "resample_every": 6, "matmul": "float32", "log_every": 7, "checkpoint_seconds": 0.5,
        "arms_at_once": 1, "parallel": 3, "ranks_per_sae": 2, "trackers": "wandb,tensorboard", "device": "cpu", "out": "train.k=3",
    },
    "compare": {
        "runs": "--runs", "out": "o", "hook": "3", "store": "hf://datasets/me/acts", "model": "none", "baseline": "none@k=8",
        "tokens": 2, "ce_contexts": 1, "per_type": 2, "min_words": 3, "labels": "$HOME/`x`.csv", "contextual": False,
        "prompts": True, "probe_gate": 0.1, "split_gain": 0.2, "max_k": 4, "rank_latents": "f1", "equivalence": 0.01, "fvu_cost": "0.002,0.01", "narrower": "n", "composition": True,
        "controls": False, "seed": -5, "parallel": 2, "device": "cpu", "device_map": "balanced",
    },
    "show": {"sae": "runs/none@k=8-seed0", "beside": "runs/b,c", "store": "s", "latents": (4, -1), "contexts": 3, "tokens": 5,
             "model": "none", "labels": "l.csv", "codes": "there", "device": "cpu", "out": "a\nb.html"},
    "check": {"sae": "user/repo:layer", "model": "m", "text": "t", "store": "s", "hook": "-1", "format": "openai", "k": 3, "input_scale": 0.5,
              "tokens": 9, "context_size": 8, "device": "cpu", "device_map": "sequential"},
    "verify": {"path": "compare.path=x", "repair": True, "model": "m", "text": "t", "device": "cpu", "device_map": "auto"},
    "inspect": {"path": "-x", "rows": 0},
    "estimate": {"hooks": "3", "tokens": 4, "trial": 0.5, "out": "there"},
    "merge": {"stores": ("a,b", "c d", "hf://datasets/me/acts"), "out": "o"},
    "push": {"store": "s", "repo": "me/acts", "private": False, "revision": "dev"},
    "pull": {"address": "me/acts@v1", "hooks": "blocks.*.hook_out,-1", "out": "o"},
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_line_made_of_settings_makes_the_same_settings(verb):
    model = VERBS[verb]
    every = model(**EVERY_SETTING[verb])
    assert verb == "estimate" or set(EVERY_SETTING[verb]) == set(model.model_fields)
    required = {key: EVERY_SETTING[verb][key] for key, field in model.model_fields.items() if field.is_required()}
    for settings in (every, model(**required)):
        words = shlex.split(command_line(settings))
        assert words[0] == "sae-lm" and parse(words[1:]) == (verb, settings)


def test_a_command_line_names_what_differs_from_the_defaults_alone():
    settings = ShowSettings(sae="my sae", store="acts", latents=(3, 5), out="x.html")
    assert command_line(settings) == "sae-lm show 'my sae' --store acts --latents 3,5 --out x.html"
    settings = CacheSettings(hooks=("-1",), tokens=5, text_column="text", pack=False, repeat=True, out="x")
    assert command_line(settings) == "sae-lm cache --text-column text --hooks=-1 --tokens 5 --no-pack --repeat --out x"


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_every_flag_what_it_is_and_its_default_without_torch(verb):
    program = (
        "import sys\nfrom sae_lm.cli import main\n"
        f"try:\n    main(['{verb}', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'transformer_lens', 'datasets', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "400"},
    )
    assert done.stdout.endswith("[]\n")
    for key, field in VERBS[verb].model_fields.items():
        assert f"--{key.replace('_', '-')} " in done.stdout or f"  {key.upper()} " in done.stdout
        assert " ".join((field.description or "").split()) in done.stdout
        if not field.is_required() and field.default not in (None, ()):
            shown = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            shown = f"{shown:.4g}" if isinstance(shown, float) else shown
            assert f"(default: {shown})" in done.stdout


def test_switches_positionals_and_lists_are_read_as_help_says():
    cached = parse(["cache", "--hooks", "a,b", "--tokens", "5", "--no-pack", "--repeat", "--out", "x"])[1]
    assert cached.hooks == ("a", "b") and not cached.pack and cached.repeat and cached.prepend_bos
    assert parse(["demo", "toy"])[1].what == "toy" and parse(["demo"])[1].what == "pipeline"
    assert parse(["push", "acts", "me/acts", "--no-private"])[1].repo == "me/acts"
    assert parse(["merge", "a", "b", "--out", "x"])[1].stores == ("a", "b")
    assert parse(["show", "--out", "x", "--store", "s", "--latents", "1,2", "sae"])[1].latents == (1, 2)


def test_a_flag_may_stand_between_positionals_as_before_or_behind_them():
    shown = parse(["show", "A", "--store", "S", "B", "--out", "x"])[1]
    assert (shown.sae, shown.beside, shown.store) == ("A", "B", "S")
    assert parse(["merge", "a", "--out", "o", "b", "c"])[1].stores == ("a", "b", "c")
    assert parse(["merge", "a", "--out", "o", "--", "-b"])[1].stores == ("a", "-b")
    assert parse(["push", "acts", "--revision", "r", "me/acts"])[1].repo == "me/acts"
    for words, said in (
        ("show A --store S B --out x C", "unexpected argument 'C'"),
        ("show A --stroe S B --out x", "unknown argument '--stroe'; expected '--store'"),
        ("compare R --tokens 3 T --out x", "unexpected argument 'T'"),
    ):
        with pytest.raises(SettingsError, match=said):
            parse(words.split())


def test_a_positional_may_stand_in_the_file_and_words_after_two_dashes_are_positional(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('[compare]\nruns = "there"\n')
    assert parse(["compare", "--config", str(file), "--out", "x"])[1].runs == Path("there")
    assert parse(["compare", "--config", str(file), "--out", "x", "--", "-a.b=c"])[1].runs == Path("-a.b=c")


def test_settings_made_in_python_read_no_environment_file_or_command_line(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("K=5\nSEEDS=5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sae-lm", "--k", "5", "train.k=5"])
    for name in ("K", "k", "TRAIN_K", "SAE_LM_K", "train"):
        monkeypatch.setenv(name, "5")
    assert TrainSettings(store="a", out="b").k == 32 and parse(["train", "--store", "a", "--out", "b"])[1].k == 32


def test_help_needs_neither_torch_nor_transformer_lens():
    program = (
        "import sys\nfrom sae_lm.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "import sae_lm\nprint([m for m in ('torch', 'transformer_lens', 'datasets', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n") and "sae-lm cache" in done.stdout


def test_python_m_and_exit_codes_reach_the_shell(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sae_lm", "verify", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "neither an activation store" in done.stderr and "Traceback" not in done.stderr


def test_a_list_of_layers_may_begin_with_a_negative_one():
    for arguments in (["--hooks", "-1,0"], ["--hooks=-1,0"]):
        _, settings = parse(["cache", *arguments, "--tokens", "5", "--out", "x"])
        assert settings.hooks == ("-1", "0")


@pytest.mark.parametrize("number", ["9" * 400, "1e5", "1000000000000001"])
def test_numbers_that_nobody_means_are_one_sentence(number, capsys):
    assert main(["cache", "--hooks", "0", "--out", "x", "--tokens", number]) == 2
    assert "--tokens: got" in capsys.readouterr().err


def test_counts_are_exact_however_large():
    assert parse(["cache", "--hooks", "0", "--out", "x", "--tokens", "999999999999999"])[1].tokens == 10**15 - 1
    assert parse(["cache", "--hooks", "0", "--out", "x", "--tokens", "1.5M"])[1].tokens == 1_500_000


def test_settings_made_in_python_are_refused_in_a_sentence_too():
    from sae_lm import CacheSettings, TrainSettings
    from sae_lm.errors import SettingsError

    with pytest.raises(SettingsError, match="^TrainSettings: unknown setting 'd_saee'; expected 'd_sae'"):
        TrainSettings(store="a", out="b", d_saee=3)
    with pytest.raises(
        SettingsError, match="^CacheSettings: tokens: got 0; expected greater than 0; CacheSettings: out is required"
    ):
        CacheSettings(hooks="1", tokens=0)


def test_a_reader_that_goes_away_early_is_no_error(tiny_store):
    command = [sys.executable, "-m", "sae_lm", "inspect", str(tiny_store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 141


def test_what_the_output_cannot_encode_is_escaped(cache_settings, tmp_path):
    (tmp_path / "text.txt").write_text("é→中 " * 60, encoding="utf-8")
    store = cache(cache_settings(tmp_path / "store", text=str(tmp_path / "text.txt"), tokens=60))
    command = [sys.executable, "-m", "sae_lm", "inspect", str(store)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and "\\u2192\\u4e2d" in done.stdout


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["demo", "--seeds", "10"], "demo: --seeds is for the toys; give it with `demo toy`, or leave it out"),
        (
            ["verify", "SAE", "--device-map", "auto"],
            "verify: --device-map is for --repair alone; give that too, or leave",
        ),
        (["compare", "RUNS", "--hook", "3", "--out", "o"], "compare: --hook is for SAEs of other programs, and"),
    ],
)
def test_a_setting_that_the_rest_of_the_command_makes_nothing_of_is_refused(make_sae, tmp_path, capsys, line, said):
    save(make_sae(), tmp_path / "sae")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "run.json").write_text("{}")
    names = {"SAE": str(tmp_path / "sae"), "RUNS": str(tmp_path / "runs")}
    assert main([names.get(word, word) for word in line]) == 2
    assert said in capsys.readouterr().err


def test_an_sae_is_not_repaired_but_trained_again(make_sae, tmp_path, capsys):
    save(make_sae(), tmp_path / "sae")
    assert main(["verify", str(tmp_path / "sae"), "--repair"]) == 2
    assert "is an SAE directory; train it again" in capsys.readouterr().err


def _paths(verb):
    """Settings that name a place on this disk."""
    return [
        key
        for key, field in VERBS[verb].model_fields.items()
        if "Path" in str(field.annotation) or (verb, key) == ("inspect", "path")
    ]


@pytest.mark.parametrize("verb", [verb for verb in VERBS if _paths(verb)])
def test_a_tilde_is_the_home_in_every_path_of_every_command_where_no_shell_has_put_it(verb, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for key in _paths(verb):
        many = key == "stores"
        for named, meant in (("~/a b", f"{tmp_path}/a b"), ("~nosuch/x", "~nosuch/x"), ("a~b/~", "a~b/~")):
            settings = VERBS[verb](**{**EVERY_SETTING[verb], key: (named, "other") if many else named})
            value = getattr(settings, key)
            assert str(value[0] if many else value) == meant, key
    file = tmp_path / "c.toml"
    file.write_text(
        '[cache]\nhooks = "0"\ntokens = 3\nout = "~/x"\n[train]\nstore = "hf://datasets/me/acts"\nout = "~"\n'
    )
    assert parse(["cache", "--config", str(file)])[1].out == tmp_path / "x"
    train = parse(["train", "--config", str(file)])[1]
    assert (train.store, train.out) == ("hf://datasets/me/acts", tmp_path)
