"""An SAE whose files leave something open: check takes it as a flag, other commands name convert, which has the flags."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from foreign_saes import FOREIGN
from hand_made import WORDS, random_contexts, random_sae, write_store

from sae_lm.cli import main
from sae_lm.sae.formats.saelens import save


def unscaled(folder: Path) -> Path:
    """An SAE of activations that are multiplied by a number that no file says."""
    path, _ = FOREIGN["saelens expected_average_only_in"][0](folder)
    (path / "activation_scaler.json").unlink()
    return path


def without_hook(folder: Path) -> Path:
    path, _ = FOREIGN["openai topk"][0](folder)
    return path.rename(folder / "8.pt")


def without_k(folder: Path) -> Path:
    path, _ = FOREIGN["qwen_scope"][0](folder)
    return path.rename(folder / "layer7.sae.pt")


@pytest.mark.parametrize(("made", "flag"), [(unscaled, "--input-scale"), (without_hook, "--hook"), (without_k, "--k")])
@pytest.mark.parametrize("command", ["show", "export", "inspect", "push"])
def test_a_command_without_the_flag_names_the_one_that_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, made: Callable[[Path], Path], flag: str
) -> None:
    store = write_store(tmp_path / "store", random_contexts(10, 8, 0)).path
    rows = ["--store", str(store), "--out", str(tmp_path / "out" / "page.html"), "--device", "cpu"]
    more = {"show": rows, "export": ["--to", "delphi", *rows], "push": ["owner/name:folder"]}.get(command, [])
    assert main([command, str(made(tmp_path)), *more]) == 2
    said = capsys.readouterr().err
    assert re.search(rf"; give .*, or run sae-lm convert with {flag} first$", said.strip())
    assert "\n" not in said.strip()


def test_check_takes_the_scale_that_no_file_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write_store(tmp_path / "store", random_contexts(10, 8, 0)).path
    save(random_sae(len(WORDS), 12, 3, 1), tmp_path / "sae")
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    config["normalize_activations"] = "expected_average_only_in"
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps(config))
    words = ["check", str(tmp_path / "sae"), "--model", "none", "--store", str(store), "--device", "cpu"]
    assert main(words) == 2 and "give input_scale=" in capsys.readouterr().err
    assert main([*words, "--input-scale", "0.7"]) in (0, 1)
    assert "activations are multiplied by 0.7, as given" in capsys.readouterr().out
