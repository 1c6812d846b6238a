"""Stores cached from a hub: a private model and text, a stream that breaks, a text that moved on meanwhile."""

import json
import shutil
from pathlib import Path

from hub_scripts import TOKEN, run
from hub_stand_in import HubStandIn

PRIVATE = """
import logging
logging.basicConfig(level=logging.DEBUG)
from huggingface_hub.utils import logging as hub_logging
hub_logging.set_verbosity_debug()
from sae_lm.commands.cache import cache
from sae_lm.settings import CacheSettings

def store(name, **changes):
    settings = {"model": "me/tiny", "text": "me/lines", "hooks": "blocks.0.hook_out", "tokens": 60, "context_size": 16}
    return str(cache(CacheSettings(**settings | changes, out=os.path.join(os.environ["HF_HOME"], "..", name))))

right = os.environ["HF_TOKEN"]
os.environ["HF_TOKEN"] = "hf_of_a_stranger"
note("stranger, model", store, "never", text="embedded")
note("stranger, text", store, "never", model="embedded")
os.environ["HF_TOKEN"] = right
note("owner", store, "acts")
finish()
"""


def model_and_lines(root: Path, owner: str, model: Path, texts: list[str]) -> None:
    """The repositories OWNER/tiny, a copy of a model, and OWNER/lines, a data set of these texts."""
    shutil.copytree(model, root / "models" / owner / "tiny")
    lines = root / "datasets" / owner / "lines/train.jsonl"
    lines.parent.mkdir(parents=True)
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def test_what_is_private_is_cached_with_its_owners_token_and_no_trace_of_it(tmp_path: Path, tiny_model: Path) -> None:
    root = tmp_path / "hub"
    model_and_lines(root, "me", tiny_model, [f"line {number} of a private text" for number in range(20)])
    hub = HubStandIn(root, private=["me/tiny", "me/lines"], accounts={TOKEN: "me"})
    with hub:
        said = run(PRIVATE, hub, tmp_path / "home")
    assert said["stranger, model"].startswith("HubError: ") and "has no model 'me/tiny'" in said["stranger, model"]
    assert said["stranger, text"].startswith("HubError: ") and "has no data set 'me/lines'" in said["stranger, text"]
    assert not (tmp_path / "never").exists()
    assert f"Bearer {TOKEN}" in hub.tokens
    manifest = json.loads((tmp_path / "acts/manifest.json").read_text())
    assert [manifest["rows"], manifest["recipe"]["text"]["id"], manifest["recipe"]["model"]["id"]] == [
        60,
        "me/lines",
        "me/tiny",
    ]
    assert manifest["recipe"]["text"]["fingerprint"] == hub.commit("datasets", "me/lines")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if TOKEN.encode() in path.read_bytes()]


BROKEN = """
real_sleep = time.sleep
time.sleep = lambda seconds: real_sleep(min(seconds, 0.002))
from hub_stand_in import HubStandIn
from pathlib import Path
hub = HubStandIn(Path(sys.argv[1]))
os.environ["HF_ENDPOINT"] = hub.endpoint.replace("://", f"://name:{os.environ['HF_TOKEN']}@")
with hub:
    text = open_text("someone/lines")
    hub.failing["someone/lines"] = 500
    note("broken", lambda: list(text.documents()))
finish()
"""


def test_a_password_in_the_address_is_not_shown_when_a_stream_breaks(tmp_path: Path) -> None:
    lines = tmp_path / "hub/datasets/someone/lines/train.jsonl"
    lines.parent.mkdir(parents=True)
    lines.write_text('{"text": "one"}\n' * 3)
    said = run(BROKEN, HubStandIn(tmp_path / "hub"), tmp_path / "home")
    assert said["broken"].startswith("TextError: someone/lines: cannot be read") and "500" in said["broken"]


MOVED = """
from pathlib import Path
from hub_stand_in import HubStandIn
from sae_lm.commands.cache import cache
from sae_lm.data.shards import OpenShard
from sae_lm.settings import CacheSettings

root, home = Path(sys.argv[1]), Path(os.environ["HF_HOME"])
hub = HubStandIn(root)
os.environ["HF_ENDPOINT"] = hub.endpoint
write = OpenShard.write

def store(name, shards=99, **changes):
    def until(self, *arguments):
        if self.index == shards:
            raise KeyboardInterrupt
        return write(self, *arguments)
    OpenShard.write = until
    settings = {"model": "someone/tiny", "text": "someone/lines", "hooks": "0", "tokens": 200, "context_size": 16}
    try:
        return str(cache(CacheSettings(**settings | changes, shard_tokens=32, out=home.parent / name)))
    except KeyboardInterrupt:
        return "interrupted"

with hub:
    note("whole", store, "whole")
    note("part", store, "part", shards=3)
    hub.push("datasets", "someone/lines", "main", "a card", {"README.md": b"# Lines"})
    note("goes on", store, "part")
    note("reused", store, "whole")
    note("new", store, "new")
    note("other text", store, "new", text="embedded", split="train")
    hub.push("models", "someone/tiny", "main", "a card", {"README.md": b"# Tiny"})
    note("model moved", store, "new")
    commit = said["model moved"].partition("--revision ")[2].split()[0]
    note("model at its commit", store, "new", revision=commit)
finish()
"""


def test_caching_goes_on_with_the_commit_of_a_text_that_has_moved_on_since(tmp_path: Path, tiny_model: Path) -> None:
    root = tmp_path / "hub"
    model_and_lines(root, "someone", tiny_model, [f"line {number} of a text" for number in range(80)])
    hub = HubStandIn(root)
    first = hub.commit("datasets", "someone/lines")
    said = run(MOVED, hub, tmp_path / "home")
    whole, part, new = (tmp_path / name for name in ("whole", "part", "new"))
    assert said["part"] == "interrupted" and said["goes on"] == str(part) and said["reused"] == str(whole)
    for file in (path for path in whole.rglob("*") if path.is_file()):
        assert (part / file.relative_to(whole)).read_bytes() == file.read_bytes(), file
    commits = [
        json.loads((store / "manifest.json").read_text())["recipe"]["text"]["fingerprint"] for store in (part, new)
    ]
    assert commits[0] == first != commits[1]
    assert said["other text"].startswith("StoreError: ") and "text.id is" in said["other text"]
    assert "; give --revision " in said["model moved"] and said["model at its commit"] == str(new)
