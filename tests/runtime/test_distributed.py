"""The command line as a process: against a stand-in for the hub, without one, and killed for real."""

import json
import os
import shutil
import subprocess
import sys

from conftest import TEXTS
from hub_stand_in import HubStandIn

import sae_lm
from sae_lm.sae.formats.saelens import save

TOKEN = "hf_not_to_be_kept"


def environment(**changes):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return kept | {"HF_HUB_DISABLE_TELEMETRY": "1"} | changes


def command(*arguments, **changes):
    return subprocess.run(
        [sys.executable, "-m", "sae_lm", *map(str, arguments)],
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_a_hub_model_and_a_streamed_hub_data_set_become_a_pinned_store(tmp_path, tiny_model, make_sae):
    root = tmp_path / "hub"
    shutil.copytree(tiny_model, root / "models" / "someone" / "tiny")
    lines = root / "datasets" / "someone" / "lines" / "train.jsonl"
    lines.parent.mkdir(parents=True)
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    save(make_sae(d_in=16, d_sae=32), root / "models" / "someone" / "saes" / "layer1")
    with HubStandIn(root) as hub:
        settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
        store = ["--hooks", "blocks.1.hook_out", "--tokens", "300", "--context-size", "16", "--out", tmp_path / "acts"]
        done = command("cache", "--model", "someone/tiny", "--text", "someone/lines", *store, **settings)
        assert done.returncode == 0, done.stderr
        page = tmp_path / "latents.html"
        shown = command("show", "someone/saes:layer1", "--store", tmp_path / "acts", "--out", page, **settings)
        commits = [hub.commit("models", "someone/tiny"), hub.commit("datasets", "someone/lines")]
        assert hub.tokens == {f"Bearer {TOKEN}"}
    assert shown.returncode == 0, shown.stderr
    assert "blocks.1.hook_out" in page.read_text()
    recipe = sae_lm.open_store(tmp_path / "acts").manifest.recipe
    assert [recipe.model["id"], recipe.text["id"]] == ["someone/tiny", "someone/lines"]
    assert [recipe.model["revision"], recipe.text["fingerprint"]] == commits
    written = b"".join(path.read_bytes() for path in (tmp_path / "acts").rglob("*") if path.is_file())
    assert TOKEN.encode() not in written + done.stdout.encode() + done.stderr.encode()


COUNTED = """
import os, sys
from sae_lm.cli import main
sys.addaudithook(lambda event, given: event == "socket.connect" and os.write(2, f"connects to {given[1]}\\n".encode()))
sys.exit(main(sys.argv[1:]))
"""


def test_without_a_network_a_hub_id_is_one_sentence_after_one_try(tmp_path):
    """Retries take 23 s. They are counted: how long a loaded machine takes to start Python says nothing about them."""
    words = ["--model", "someone/model", "--hooks", "blocks.0.hook_out", "--tokens", "1k", "--out", tmp_path / "acts"]
    # the discard port: nothing listens
    alone = environment(HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "home"))
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, "cache", *words], env=alone, capture_output=True, text=True, timeout=240
    )
    assert done.stderr.count("connects to") == 1, done.stderr
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "someone/model" in done.stderr and "cannot reach http://127.0.0.1:9" in done.stderr
    assert not (tmp_path / "acts").exists()


def test_a_store_goes_to_the_hub_and_an_sae_is_trained_on_it_there(tmp_path, tiny_store):
    with HubStandIn(tmp_path / "hub", accounts={TOKEN: "me"}) as hub:
        settings = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
        }
        pushed = command("push", tiny_store, "me/acts", **settings)
        assert pushed.returncode == 0, pushed.stderr
        address = pushed.stdout.split()[-1]
        runs = [
            "--d-sae",
            "32",
            "--k",
            "4",
            "--batch-size",
            "64",
            "--arms",
            "none",
            "--seeds",
            "1",
            "--out",
            tmp_path / "runs",
        ]
        trained = command("train", "--store", address, "--hook", "blocks.1.hook_out", *runs, **settings)
        assert trained.returncode == 0, trained.stderr
        asked = "".join(hub.requests)
        pulled = command("pull", "me/acts", "--out", tmp_path / "pulled", **settings)
        assert pulled.returncode == 0, pulled.stderr
    assert "blocks.0.hook_out/00" not in asked.split("blocks.1.hook_out/00000", 1)[-1].replace(
        "blocks.0.hook_out/stats", ""
    )
    assert (
        sae_lm.load(tmp_path / "runs" / "none-seed0").config.metadata["training"]["store_id"]
        == sae_lm.open_store(tiny_store).manifest.id
    )
    assert command("verify", tmp_path / "pulled").returncode == 0
    said = "".join(done.stdout + done.stderr for done in (pushed, trained, pulled))
    written = b"".join(
        path.read_bytes() for name in ("pulled", "runs") for path in (tmp_path / name).rglob("*") if path.is_file()
    )
    assert TOKEN not in said and TOKEN.encode() not in written


def test_one_of_torchruns_processes_ends_with_its_message_and_code_and_without_the_interpreters_own_end(tmp_path):
    script = "import atexit, sys; atexit.register(print, 'teardown'); from sae_lm.cli import main; main(sys.argv[1:])"
    alone = [sys.executable, "-c", script, "verify", str(tmp_path / "nothing")]
    ranked = environment(RANK="0", WORLD_SIZE="2", MASTER_ADDR="localhost")
    for run_in, teardown in ((environment(), True), (ranked, False)):
        done = subprocess.run(alone, env=run_in, capture_output=True, text=True, timeout=60)
        assert "nothing" in done.stderr and ("teardown" in done.stdout) is teardown
    assert done.returncode == 2
