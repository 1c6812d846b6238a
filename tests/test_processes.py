"""The command line as a process: against a stand-in for the hub, without one, and killed for real."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import TEXTS
from hub_stand_in import HubStandIn

import sae_lm
from sae_lm.caching import cache
from sae_lm.sae.checkpoint import save

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


def test_without_a_network_a_hub_id_is_one_sentence_within_seconds(tmp_path):
    began = time.monotonic()
    done = command(
        *(
            "cache",
            "--model",
            "someone/model",
            "--hooks",
            "blocks.0.hook_out",
            "--tokens",
            "1k",
            "--out",
            tmp_path / "acts",
        ),
        HF_ENDPOINT="http://127.0.0.1:9",  # the discard port: nothing listens
        HF_HOME=str(tmp_path / "home"),
    )
    assert time.monotonic() - began < 20  # a loaded machine starts Python slowly; retries would take 23 s on top
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "someone/model" in done.stderr and "cannot reach http://127.0.0.1:9" in done.stderr
    assert not (tmp_path / "acts").exists()


def test_a_cache_killed_with_signal_9_continues_to_the_same_bytes(tmp_path, cache_settings, capsys):
    def contents(folder: Path) -> dict[str, bytes]:
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    whole = cache(cache_settings(tmp_path / "whole", tokens=5000, batch_size=1, shard_tokens=64))
    killed = cache_settings(tmp_path / "killed", tokens=5000, batch_size=1, shard_tokens=64)
    flags = [
        f"--{name.replace('_', '-')}={','.join(value) if isinstance(value, tuple) else value}"
        for name, value in killed.model_dump().items()
        if name not in ("prepend_bos",) and value is not None
    ]
    process = subprocess.Popen([sys.executable, "-m", "sae_lm", "cache", *flags], env=environment(HF_HUB_OFFLINE="1"))
    while process.poll() is None and len(list(killed.out.glob("tokens/*.safetensors"))) < 5:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    capsys.readouterr()
    cache(killed)
    assert "continuing after" in capsys.readouterr().out
    assert contents(killed.out) == contents(whole)
