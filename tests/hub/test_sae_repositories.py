"""SAEs in repositories of a stand-in for the hub: listed before anything is fetched, and only one SAE's files fetched."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from foreign_saes import gemma_scope, saelens_old, saelens_topk
from hub_stand_in import HubStandIn

pytestmark = pytest.mark.transformer_lens_3  # SAELens' releases are known there

SCRIPT = """
import json, sys
import sae_lm

said = {}
for name in json.loads(sys.argv[1]):
    try:
        sae = sae_lm.load(name, "cpu")
        said[name] = [repr(sae), *sae.provenance]
    except sae_lm.SaeLmError as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""
GEMMA = "google/gemma-scope-2b-pt-res"
FIRST = f"{GEMMA}:layer_20/width_16k/average_l0_71"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    for place in (
        "layer_20/width_16k/average_l0_71",
        "layer_20/width_16k/average_l0_139",
        "layer_3/width_65k/average_l0_17",
    ):
        gemma_scope(root / "models", place)
    (root / "models" / GEMMA / "README.md").write_text("many SAEs")
    path, _ = saelens_topk(root / "models" / "me" / "one" / "layer_6")
    (path / "sparsity.safetensors").write_bytes(b"not needed")
    (root / "models" / "me" / "one" / "large.bin").write_bytes(b"0" * 100_000)
    (root / "models" / "me" / "none").mkdir()
    (root / "models" / "me" / "none" / "model.safetensors").write_bytes(b"no SAE")
    with HubStandIn(root) as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def load(hub, home, *names, **environment):
    hub.requests.clear()
    inherited = {k: v for k, v in os.environ.items() if not k.upper().startswith(("HF_", "HTTP", "ALL_PROXY"))}
    settings = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # these counts go to a fixed address elsewhere
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-c", SCRIPT, json.dumps(names)]
    done = subprocess.run(command, env=inherited | settings | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    fetched = sorted({request.partition("/resolve/")[2].partition("/")[2] for request in hub.requests} - {""})
    return json.loads(done.stdout), fetched


@pytest.fixture(scope="module")
def refused(hub, home):
    return load(hub, home, GEMMA, f"{GEMMA}:layer_20", f"{GEMMA}:layer_2O/width_16k/average_l0_71", "google/gemma-scope-2b-pt-re",
                "me/none", "me/nothing", "nobody/at-all", "me/one@v9", f"{GEMMA}:README.md")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (GEMMA, "holds several; name one of layer_3/width_65k/average_l0_17, layer_20/width_16k/average_l0_71, layer_20/"),
        (f"{GEMMA}:layer_20", "name one of layer_20/width_16k/average_l0_71, layer_20/width_16k/average_l0_139: google"),
        (f"{GEMMA}:layer_2O/width_16k/average_l0_71", "has no SAE 'layer_2O/width_16k/average_l0_71'; it holds layer_20/width_16k/average_l0_71, "),
        ("google/gemma-scope-2b-pt-re", "google has google/gemma-scope-2b-pt-res"),
        ("me/none", "holds no file of an SAE that is known here, but model.safetensors"),
        ("me/nothing", "not on the hub either"),
        ("nobody/at-all", "not on the hub either"),
        ("me/one@v9", "no revision 'v9'"),
        (f"{GEMMA}:README.md", "has no SAE 'README.md'"),
    ],
)  # fmt: skip
def test_what_is_not_one_sae_is_answered_with_what_is_there(refused, name, says):
    said, _ = refused
    assert said[name].startswith("SaeError: ") and says in said[name] and "\n" not in said[name]


def test_nothing_is_fetched_before_one_sae_is_named(refused):
    assert refused[1] == []


def test_only_the_files_of_the_sae_that_is_named_are_fetched(hub, home):
    said, fetched = load(hub, home, FIRST)
    assert fetched == ["layer_20/width_16k/average_l0_71/params.npz"]
    commit = hub.commit("models", GEMMA)
    assert "hook='blocks.20.hook_out'" in said[FIRST][0]
    assert any(f"params.npz of {GEMMA} at {commit}: sha256 " in sentence for sentence in said[FIRST])


def test_the_only_sae_of_a_repository_needs_no_folder_and_may_have_a_revision(hub, home):
    commit = hub.commit("models", "me/one")
    names = ("me/one", f"me/one@{commit}:layer_6/sae")
    said, fetched = load(hub, home, *names)
    assert fetched == ["layer_6/sae/cfg.json", "layer_6/sae/sae_weights.safetensors"]
    assert "me/one holds one SAE, layer_6/sae" in said["me/one"]
    assert said[names[1]][0] == said["me/one"][0]


def test_what_was_fetched_serves_without_the_hub(hub, home):
    load(hub, home, FIRST)
    said, fetched = load(hub, home, FIRST, f"{GEMMA}:layer_3/width_65k/average_l0_17", HF_HUB_OFFLINE="1")
    assert fetched == [] and "blocks.20.hook_out" in said[FIRST][0]
    assert "it holds layer_20/width_16k/average_l0_71" in said[f"{GEMMA}:layer_3/width_65k/average_l0_17"]


def test_what_saelens_knows_of_a_repository_is_known_here(hub, home):
    path, _ = saelens_old(hub.root / "models" / "jbloom" / "GPT2-Small-SAEs-Reformatted")
    config = json.loads((path / "cfg.json").read_text())
    name = "jbloom/GPT2-Small-SAEs-Reformatted:blocks.8.hook_resid_pre"
    told = "\n".join(load(hub, home, name)[0][name])
    assert "input centred" in told and "hook blocks.8.hook_in from cfg.json, which says blocks.8.hook_resid_pre" in told
    assert "model_from_pretrained_kwargs" not in config


@pytest.mark.skipif(find_spec("sae_lens") is None, reason="needs sae-lens")
def test_a_release_of_saelens_is_found_by_its_name(hub, home):
    saelens_old(hub.root / "models" / "jbloom" / "GPT2-Small-SAEs-Reformatted")
    right, wrong, other = (
        f"gpt2-small-res-j{letter}:blocks.8.hook_resid_pr{end}" for letter, end in ("be", "xe", "bx")
    )
    said, _ = load(hub, home, right, wrong, other)
    assert "input centred" in "\n".join(said[right])
    assert "near it are gpt2-small-res-jb" in said[wrong]
    assert "it has blocks.8.hook_resid_pre, " in said[other]
