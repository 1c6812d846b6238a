"""sae-lm inspect says in words what a store or an SAE is."""

from types import SimpleNamespace

import pytest

import sae_lm
from sae_lm.cli import main
from sae_lm.data import remote
from sae_lm.data.manifest import read_manifest


def test_inspect_shows_what_a_store_holds_in_words(tiny_store, make_sae, tmp_path, capsys):
    from sae_lm.sae.formats.saelens import save

    assert main(["inspect", str(tiny_store), "--rows", "3"]) == 0
    said = capsys.readouterr().out
    assert "tiny-gpt2" in said and "1,500 in" in said and "documents.jsonl" in said
    assert "norms" in said and "blocks.1.hook_out  width 16" in said and "special tokens" in said
    decoded = [line for line in said.splitlines() if "document " in line and "[" in line]
    assert len(decoded) == 3 and all("]" in line for line in decoded)
    save(make_sae(), tmp_path / "sae")
    assert main(["inspect", str(tmp_path / "sae")]) == 0
    assert "SAE(topk, d_in=6, d_sae=10" in capsys.readouterr().out


def test_a_path_may_be_a_string_or_not(tiny_store, make_sae, tmp_path):
    from sae_lm.sae.formats.saelens import save

    save(make_sae(), tmp_path / "sae")
    for path in (tiny_store, tmp_path / "sae"):
        assert sae_lm.inspect(path) == sae_lm.inspect(str(path))


def test_inspect_says_whether_an_sae_left_its_random_start(make_sae, tmp_path, capsys):
    from sae_lm.sae.formats.saelens import save

    for name, facts in {
        "recorded": {"convergence": {"start_cos": 0.74, "encoder_start_cos": 0.91, "fvu_slope": 0.21}, "arm": "none"},
        "older": {"seed": 0, "training": {}, "arm": "none"},
        "foreign": {"seed": 0},
    }.items():
        sae = make_sae()
        sae.config.metadata.update(facts)
        save(sae, tmp_path / name)
        main(["inspect", str(tmp_path / name)])
    recorded, older = (line for line in capsys.readouterr().out.splitlines() if "random start" in line)
    assert "cosine 0.74" in recorded and "(encoder rows 0.91), FVU fell by 21%" in recorded
    assert recorded.endswith("hardly trained, give more --tokens or a higher --lr")
    assert "hardly trained" not in older, "a random decoder is far from any start"


def test_inspect_and_verify_name_what_a_folder_holds_that_is_neither(make_sae, tmp_path, capsys):
    from sae_lm.sae.formats.saelens import save

    for name in ("none-seed0", "none-seed1"):
        save(make_sae(), tmp_path / "runs" / name)
    (tmp_path / "empty").mkdir()
    for verb in ("inspect", "verify"):
        assert main([verb, str(tmp_path / "runs")]) == 2
        assert capsys.readouterr().err.endswith("holds some; name one of none-seed0, none-seed1\n")
        assert main([verb, str(tmp_path / "nowhere")]) == 2
        assert "nowhere does not exist; name an activation store or an SAE directory" in capsys.readouterr().err
        assert main([verb, str(tmp_path / "empty")]) == 2
        assert "is neither an activation store (manifest.json) nor an SAE directory" in capsys.readouterr().err


def test_from_python_too_a_tilde_is_the_users_home(tiny_store, make_sae, tmp_path, monkeypatch):
    from sae_lm.sae.formats.saelens import save

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "acts").symlink_to(tiny_store)
    save(make_sae(), tmp_path / "sae")
    assert len(sae_lm.open_store("~/acts")) == len(sae_lm.open_store(tiny_store))
    assert sae_lm.verify("~/acts") == sae_lm.verify("~/sae") == []
    assert "1,500 in" in sae_lm.inspect("~/acts") and "d_sae" in sae_lm.inspect("~/sae")
    for send in (sae_lm.push, sae_lm.push_sae):
        with pytest.raises(sae_lm.SaeLmError, match=f"{tmp_path}/none"):
            send("~/none", "me/there:here" if send is sae_lm.push_sae else "me/there")
    there = SimpleNamespace(address="hf://datasets/me/acts", manifest=read_manifest(tiny_store))
    monkeypatch.setattr(remote, "_open", lambda address: there)
    with pytest.raises(sae_lm.SaeLmError, match=f"{tmp_path}/sae is not empty"):
        sae_lm.pull("hf://datasets/me/acts", "~/sae")
