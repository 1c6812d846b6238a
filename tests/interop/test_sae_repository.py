"""SAEs pushed to a stand-in for the hub, with their cards, and loaded from there by sae_lm and by SAELens."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hand_made import random_sae

from sae_lm.errors import HubError, SaeError
from sae_lm.interop.sae_repository import card, push_sae
from sae_lm.sae.formats.saelens import save
from sae_lm.sae.model import SAE

pytestmark = pytest.mark.transformer_lens_3  # SAELens, which reads what is pushed, is there

TOKEN = "hf_not_to_be_shown"
SCRIPT = """
import json, os, sys
from pathlib import Path

from hub_stand_in import HubStandIn

root, folder = Path(sys.argv[1]), Path(sys.argv[2])
hub = HubStandIn(root, accounts={os.environ["HF_TOKEN"]: "me"})
os.environ["HF_ENDPOINT"] = hub.endpoint

from sae_lm import load
from sae_lm.cli import main
from sae_lm.errors import SaeLmError
from sae_lm.interop.sae_repository import push_sae

said = {}

def note(name, call, *arguments, **options):
    before = len(hub.commits)
    try:
        said[name] = str(call(*arguments, **options))
    except SaeLmError as error:
        said[name] = f"{type(error).__name__}: {error}"
    said[name + ", commits"] = [commit.paths for commit in hub.commits[before:]]

with hub:
    first, second = folder / "first", folder / "second"
    note("push", push_sae, first, "me/saes:blocks.1/first")
    said["private"] = "me/saes" in hub.private
    said["card"] = (root / "models/me/saes/README.md").read_text()
    note("again", push_sae, str(first), "me/saes:blocks.1/first")
    note("another there", push_sae, second, "me/saes:blocks.1/first")
    note("inside a file", push_sae, second, "me/saes:blocks.1/first/cfg.json")
    note("second", push_sae, second, "me/saes:second")
    said["card of two"] = (root / "models/me/saes/README.md").read_text()
    note("words", lambda: main(["push", str(first), "me/words:first"]))
    for name in ("me/own:first", "me/broken:first", "me/plain:first", "you/saes:first"):
        note(name, push_sae, first, name, private=False)
    note("public", push_sae, first, "me/own:second")
    note("ignored", push_sae, first, "me/ignoring:first", private=False)
    (root / "models/me/ignoring/.gitignore").unlink()
    (root / "models/me/ignoring/first").mkdir()  # as an earlier version left it
    (root / "models/me/ignoring/first/cfg.json").write_bytes((root / "models/me/saes/blocks.1/first/cfg.json").read_bytes())
    note("ignored no more", push_sae, first, "me/ignoring:first", private=False)
    for name in ("me/saes", "me/saes:", "saes:first", "me/saes:../first", "me/saes:a//b", "me/saes:a b"):
        note(name, push_sae, first, name)
    note("no SAE", push_sae, folder / "none", "me/saes:none")
    note("load", lambda: repr(load("me/saes:blocks.1/first", "cpu")))
    said["same"] = all(
        a.equal(b) for a, b in zip(load("me/saes:second", "cpu").parameters(), load(second, "cpu").parameters())
    )
    if "SAELENS" in os.environ:
        from sae_lens import SAE
        theirs, ours = SAE.from_pretrained("me/saes", "blocks.1/first", device="cpu"), load(first, "cpu")
        import torch
        x = torch.randn(5, ours.config.d_in)
        said["saelens"] = [bool(torch.allclose(theirs.encode(x), ours.encode(x), atol=1e-5)), theirs.cfg.metadata.hook_name]
print(json.dumps(said))
"""
OWN = """---
license: mit
tags:
- mine
pretty: yes please
base_model: other/base
model-index:
- name: their name
  results:
  - task:
      type: text-generation
    dataset:
      name: theirs
      type: theirs
    metrics:
    - type: accuracy
      value: 0.5
---
# Our words

Kept | as they are.
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saes")
    save(
        random_sae(7, 12, 3, 0, model_name="openai/gpt2", dataset_path="some/text", arm="none"),
        folder / "first",
    )
    save(random_sae(7, 12, 3, 1, model_name="embedded"), folder / "second")
    line = {"fvu": 0.25, "l0": 3.0, "dead": 1, "lr": 0.1}
    (folder / "first.metrics.jsonl").write_text(json.dumps({"fvu": 0.5}) + "\n" + json.dumps(line) + "\n")
    (folder / "none").mkdir()
    return folder


@pytest.fixture(scope="module")
def said(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("hub")
    for name, content in {"own": OWN, "broken": "---\n- a\n- list\n---\n", "plain": "# No metadata\n"}.items():
        (root / "models/me" / name).mkdir(parents=True)
        (root / "models/me" / name / "README.md").write_text(content)
    (root / "models/me/ignoring").mkdir()
    (root / "models/me/ignoring/.gitignore").write_text("*.safetensors\n")
    inherited = {k: v for k, v in os.environ.items() if not k.upper().startswith(("HF_", "HTTP", "ALL_PROXY"))}
    settings = {
        "HF_HOME": str(tmp_path_factory.mktemp("home")),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parents[2], Path(__file__).parents[1] / "support"))),
        **({"SAELENS": "1"} if find_spec("sae_lens") else {}),
    }
    command = [sys.executable, "-c", SCRIPT, str(root), str(folder)]
    done = subprocess.run(command, env=inherited | settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    for name in ("own", "plain"):
        said[f"card of {name}"] = (root / "models/me" / name / "README.md").read_text()
    return said


def metadata(text: str) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(text.split("---")[1])


def test_an_sae_goes_into_a_folder_of_a_private_repository_in_one_commit(said: dict[str, Any]) -> None:
    assert said["push"].startswith("me/saes@") and said["push"].endswith(":blocks.1/first") and said["private"]
    files = [f"blocks.1/first/{name}" for name in ("cfg.json", "sae_weights.safetensors")]
    assert sorted(said["push, commits"][-1]) == sorted(["README.md", *files])


def test_what_is_there_is_not_sent_again(said: dict[str, Any]) -> None:
    assert said["again"] == said["push"] and said["again, commits"] == []


def test_a_folder_that_holds_something_else_is_not_written_to(said: dict[str, Any]) -> None:
    for name in ("another there", "inside a file"):
        assert said[name].startswith("HubError: ") and "holds something else at blocks.1/first" in said[name]
        assert said[name + ", commits"] == []


def test_the_card_says_what_the_sae_is_in_the_terms_of_the_hub(said: dict[str, Any]) -> None:
    about = metadata(said["card"])
    assert about["library_name"] == "saelens" and about["base_model"] == "openai/gpt2" and "saelens" in about["tags"]
    (result,) = about["model-index"][0]["results"]
    assert {m["type"]: m["value"] for m in result["metrics"]} == {"fvu": 0.25, "l0": 3.0, "dead": 1}
    assert result["dataset"]["type"] == "some/text"
    assert 'SAE.from_pretrained("me/saes", "blocks.1/first")' in said["card"] and "none, seed None" in said["card"]


def test_a_second_sae_gets_a_section_of_its_own_and_the_firsts_stays(said: dict[str, Any]) -> None:
    assert said["card"].partition("---\n\n")[2].strip() in said["card of two"]
    assert said["card of two"].count("## ") == 2 and metadata(said["card of two"])["base_model"] == "openai/gpt2"
    assert said["second, commits"] and "README.md" in said["second, commits"][-1]


def test_a_card_in_the_owners_words_is_kept_and_added_to(said: dict[str, Any]) -> None:
    text, about = said["card of own"], metadata(said["card of own"])
    assert "# Our words\n\nKept | as they are.\n" in text and "## first" in text
    assert about["license"] == "mit" and about["pretty"] == "yes please" and about["tags"][0] == "mine"
    assert about["base_model"] == ["other/base", "openai/gpt2"]
    kinds = {r["task"]["type"] for r in about["model-index"][0]["results"]}
    assert kinds == {"text-generation", "feature-extraction"} and about["model-index"][0]["name"] == "their name"
    assert said["card of plain"].startswith("---") and "# No metadata" in said["card of plain"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("me/broken:first", "metadata cannot be read"),
        ("you/saes:first", "does not let this account"),
        ("public", "model 'me/own' is public; allow that (--no-private)"),
        ("me/saes", "names no folder, and SAELens reads no SAE at the root"),
        ("me/saes:", "give me/saes:FOLDER"),
        ("saes:first", "reads OWNER/NAME:FOLDER"),
        ("me/saes:../first", "is not one of a repository"),
        ("me/saes:a//b", "is not one of a repository"),
        ("me/saes:a b", "is not one of a repository"),
    ],
)
def test_what_cannot_be_pushed_is_one_sentence_and_changes_nothing(said: dict[str, Any], name: str, part: str) -> None:
    assert said[name].startswith("HubError: ") and part in said[name] and "\n" not in said[name]
    assert said[name + ", commits"] == []


def test_a_repository_that_leaves_weights_out_is_told_of_before_anything_is_committed(said: dict[str, Any]) -> None:
    assert "does not keep first/sae_weights.safetensors; see whether a .gitignore" in said["ignored"]
    assert said["ignored, commits"] == []
    assert said["ignored no more"].startswith("me/ignoring@")
    assert "first/sae_weights.safetensors" in said["ignored no more, commits"][-1]


def test_a_folder_that_is_no_sae_is_refused_before_the_hub_is_asked(said: dict[str, Any]) -> None:
    assert said["no SAE"].startswith("SaeError: ") and said["no SAE, commits"] == []


def test_an_sae_whose_configuration_was_changed_since_it_was_saved_is_not_pushed(tmp_path: Path) -> None:
    save(random_sae(8, 32, 4, 0, penalty="max_cos"), tmp_path)
    config = tmp_path / "cfg.json"
    config.write_text(config.read_text().replace('"max_cos"', '"abs_cos"'))
    with pytest.raises(SaeError, match="changed or damaged since it was saved"):
        push_sae(tmp_path, "me/saes:first")


def test_the_command_pushes_an_sae_as_it_does_a_store(said: dict[str, Any]) -> None:
    assert said["words"] == "0" and "first/cfg.json" in said["words, commits"][-1]


def test_what_was_pushed_is_loaded_back_bit_for_bit(said: dict[str, Any]) -> None:
    assert "d_sae=12" in said["load"] and said["same"] is True


@pytest.mark.skipif(find_spec("sae_lens") is None, reason="needs sae-lens")
def test_saelens_loads_what_was_pushed_and_computes_the_same(said: dict[str, Any]) -> None:
    assert said["saelens"] == [True, "blocks.1.hook_out"]


def with_metadata(**changes: Any) -> SAE:
    return random_sae(7, 12, 3, 0, **changes)


def test_text_in_an_saes_metadata_ends_no_cell_and_no_code() -> None:
    made = card(with_metadata(dataset_path="a`|\n# b", arm="x|y"), "me/saes", "one")
    assert "`a/ # b`" in made and "\n# b" not in made and "`x/y, seed None`" in made


def test_a_model_of_this_disk_is_no_base_model() -> None:
    made = card(with_metadata(model_name="runs/model", model_revision=None), "me/saes", "one")
    assert "base_model" not in metadata(made)
    assert metadata(card(with_metadata(model_name="gpt2"), "me/saes", "one"))["base_model"] == "gpt2"


def test_renewing_a_section_leaves_what_follows_it_and_its_old_results_go() -> None:
    first = card(with_metadata(), "me/saes", "one", {"fvu": 0.5})
    second = card(with_metadata(), "me/saes", "one", {"fvu": 0.25}, first + "\nAfterwards.\n")
    assert second.count("## one") == 1 and second.endswith("\nAfterwards.\n") and "0.5" not in second
    assert card(with_metadata(), "me/saes", "one", {"fvu": 0.25}, second) == second
    with pytest.raises(HubError, match="cannot be read"):
        card(with_metadata(), "me/saes", "one", {}, "---\n: : :\n---\n")
