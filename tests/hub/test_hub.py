"""Pins, models and data sets against a stand-in for the hub, which is then switched off.

The address of the hub is read when huggingface_hub is imported, so each state runs in a process of its own.
Both processes share one hub cache, as two commands of one user do.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hub_stand_in import HubStandIn

TOKEN = "hf_not_to_be_shown"
FAILING = {"someone/refused": 401, "someone/broken": 503}

COMMON = """
import json, os, sys, time
from sae_lm.hub import revision as hub
from sae_lm.data.text import open_text
from sae_lm.errors import SaeLmError

said = {}

def note(name, call, *arguments, **options):
    start = time.monotonic()
    try:
        value = call(*arguments, **options)
    except SaeLmError as error:
        value = f"{type(error).__name__}: {error}"
    said[name] = value
    said[name + ", seconds"] = time.monotonic() - start

def pin(*arguments):
    repo_id, revision, local = hub.pin(*arguments)
    return [repo_id, revision, local and str(local)]

def read(*arguments, **options):
    text = open_text(*arguments, **options)
    documents = list(text.documents())
    assert documents == list(text.documents())
    return [text.id, text.split, text.column, text.fingerprint, documents]

def finish():
    print(json.dumps(said))
"""

REACHABLE = """
from pathlib import Path
from datasets import are_progress_bars_disabled
from huggingface_hub import snapshot_download
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, PreTrainedTokenizerFast

tiny = Path(sys.argv[1], "models/someone/tiny")
sizes = {"vocab_size": 3, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 1}
config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
AutoModelForCausalLM.from_config(config).save_pretrained(tiny)
words = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 2}, unk_token="<eos>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(tiny)

note("model", pin, "someone/tiny", "model")
note("data set", pin, "someone/lines", "dataset")
commit = said["model"][1]
note("by commit", pin, "someone/tiny", "model", commit)
note("no revision", pin, "someone/tiny", "model", "v9")
note("missing", pin, "someone/nothing", "model")
note("private", pin, "someone/hidden", "dataset")
note("gated", pin, "someone/gated", "model")
note("refused", pin, "someone/refused", "model")
note("broken", pin, "someone/broken", "model")
note("a model as data", pin, "someone/tiny", "dataset")
for name in ("./nope", "/abs/missing", "a/b/c", "two words", ""):
    note(name, pin, name, "model")

note("lines", read, "someone/lines")
said["progress bars are on again"] = not are_progress_bars_disabled()
note("lines, test", read, "someone/lines", split="test", revision=said["data set"][1])
note("lines, bad split", read, "someone/lines", split="validation")
note("lines, bad column", read, "someone/lines", column="body")
note("table", read, "someone/table")
note("configurations", read, "someone/several")
note("second configuration", read, "someone/several:second")
note("many files", read, "someone/many")
note("no data", read, "someone/bare")

snapshot_download("someone/table", repo_type="dataset")
model = AutoModelForCausalLM.from_pretrained("someone/tiny", revision=commit)
tokenizer = AutoTokenizer.from_pretrained("someone/tiny", revision=commit)
said["tokens"] = tokenizer("b a")["input_ids"]
said["width"] = model.config.n_embd
finish()
"""

UNREACHABLE = """
note("model", pin, "someone/tiny", "model")
note("by commit", pin, "someone/tiny", "model", said["model"][1])
note("other revision", pin, "someone/tiny", "model", "v9")
note("missing", pin, "someone/nothing", "model")
note("downloaded", read, "someone/table")
note("only streamed", read, "someone/lines")

from huggingface_hub import constants
constants.HF_HUB_OFFLINE = True
note("offline, missing", pin, "someone/nothing", "model")
note("offline, model", pin, "someone/tiny", "model")
constants.HF_HUB_OFFLINE = False

import socket
socket.getaddrinfo = lambda *address, **options: time.sleep(600)
hub.DEADLINE = 0.5
note("name resolution hangs", pin, "someone/nothing", "model")
finish()
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stand-in serves; the first process adds a model, as it imports transformers anyway."""
    root = tmp_path_factory.mktemp("hub")
    several = "configs:\n- {config_name: first, data_files: 1.jsonl}\n- {config_name: second, data_files: 2.jsonl}"
    for name, content in {
        "models/someone/tiny/README.md": "# Tiny",
        "models/someone/gated/config.json": "{}",
        "datasets/someone/hidden/train.jsonl": '{"text": "secret"}',
        "datasets/someone/bare/README.md": "# No data yet",
        "datasets/someone/lines/README.md": "# Lines",
        "datasets/someone/lines/train.jsonl": '{"text": "one", "n": 1}\n{"text": ""}\n{"text": "two"}\n',
        "datasets/someone/lines/test.jsonl": '{"text": "three", "n": 3}\n',
        "datasets/someone/several/README.md": f"---\n{several}\n---\n",
        "datasets/someone/several/1.jsonl": '{"text": "first"}\n',
        "datasets/someone/several/2.jsonl": '{"text": "second"}\n',
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    many = root / "datasets/someone/many"
    many.mkdir()
    for number in range(20):
        (many / f"{number:02}.txt").write_text(f"line {number}")
    table = root / "datasets/someone/table/data/train-00000-of-00001.parquet"
    table.parent.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"n": [4, 5], "body": ["four", "five"]}), table)
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def hub(root: Path) -> HubStandIn:
    return HubStandIn(root, gated=["someone/gated"], private=["someone/hidden"], failing=FAILING)


def run(script: str, hub: HubStandIn, home: Path) -> dict[str, Any]:
    user = hub.endpoint.replace("://", f"://name:{TOKEN}@")  # as some mirrors want it
    inherited = {k: v for k, v in os.environ.items() if not k.upper().startswith(("HF_", "HTTP", "ALL_PROXY"))}
    settings = {
        "HF_ENDPOINT": user if script is UNREACHABLE else hub.endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # these counts go to a fixed address elsewhere
        "NO_PROXY": "127.0.0.1",
        "TQDM_POSITION": "-1",  # bars in a pipe as well, where they are not switched off
        "PYTHONPATH": os.pathsep.join(map(str, [Path(__file__).parents[2], Path(__file__).parents[1] / "support"])),
    }
    command = [sys.executable, "-c", COMMON + script, str(hub.root)]
    done = subprocess.run(command, env=inherited | settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "stderr": done.stderr}


@pytest.fixture(scope="module")
def reachable(hub: HubStandIn, home: Path) -> dict[str, Any]:
    with hub:
        return run(REACHABLE, hub, home)


@pytest.fixture(scope="module")
def unreachable(reachable: dict[str, Any], hub: HubStandIn, home: Path) -> dict[str, Any]:
    return run(UNREACHABLE, hub, home)


def test_a_reachable_repository_is_pinned_to_its_commit(reachable: dict[str, Any], hub: HubStandIn) -> None:
    assert reachable["model"] == ["someone/tiny", hub.commit("models", "someone/tiny"), None]
    assert reachable["data set"] == ["someone/lines", hub.commit("datasets", "someone/lines"), None]
    assert reachable["by commit"] == reachable["model"]


def test_the_token_of_the_environment_is_sent(reachable: dict[str, Any], hub: HubStandIn) -> None:
    assert hub.tokens == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    "name, said",
    [
        ("no revision", "has the model 'someone/tiny', but no revision 'v9'"),
        ("missing", "has no model 'someone/nothing', or it is private"),
        ("private", "has no data set 'someone/hidden', or it is private"),
        ("gated", "the model 'someone/gated' at http://127.0.0.1"),
        ("gated", "is gated and this account has no access"),
        ("refused", "refuses the model 'someone/refused' to this account (status 401)"),
        ("broken", "(status 503), and the local hub cache does not hold the model 'someone/broken'"),
        ("a model as data", "has no data set 'someone/tiny'"),
    ],
)
def test_what_the_hub_refuses_is_named(reachable: dict[str, Any], name: str, said: str) -> None:
    assert reachable[name].startswith("HubError: ") and said in reachable[name]


@pytest.mark.parametrize("name", ["./nope", "/abs/missing", "a/b/c", "two words", ""])
def test_a_malformed_id_is_not_looked_up(reachable: dict[str, Any], hub: HubStandIn, name: str) -> None:
    assert reachable[name].startswith(f"HubError: {name!r} is neither an existing folder nor a hub id")
    assert not [request for request in hub.requests if "nope" in request or "missing" in request]


def test_a_hub_data_set_is_streamed_at_its_commit(reachable: dict[str, Any], hub: HubStandIn) -> None:
    commit = hub.commit("datasets", "someone/lines")
    assert reachable["lines"] == ["someone/lines", "train", "text", commit, ["one", "two"]]
    assert reachable["lines, test"] == ["someone/lines", "test", "text", commit, ["three"]]
    assert reachable["table"][2:] == ["body", hub.commit("datasets", "someone/table"), ["four", "five"]]
    assert not [request for request in hub.requests if "lines/resolve/main" in request]


def test_an_unknown_split_or_column_of_the_hub_is_answered_with_the_known_ones(
    reachable: dict[str, Any],
) -> None:
    said = reachable["lines, bad split"]
    assert said.startswith("TextError: ") and "'validation'" in said and "train, test" in said
    said = reachable["lines, bad column"]
    assert said.startswith("TextError: ") and "'body'" in said and "text, n" in said


def test_a_configuration_is_named_after_a_colon(reachable: dict[str, Any]) -> None:
    said = reachable["configurations"]
    assert said.startswith("TextError: ") and "first" in said and "second" in said and "ID:CONFIG" in said
    assert "\n" not in said
    assert reachable["second configuration"][0] == "someone/several:second"
    assert reachable["second configuration"][-1] == ["second"]


def test_many_files_are_read_in_order_without_a_progress_bar(reachable: dict[str, Any]) -> None:
    assert reachable["many files"][-1] == [f"line {number}" for number in range(20)]
    assert "Resolving data files" not in reachable["stderr"], "datasets shows a bar from 17 files on"
    assert reachable["progress bars are on again"]


def test_a_data_set_without_data_is_refused_in_one_sentence(reachable: dict[str, Any]) -> None:
    assert reachable["no data"].startswith("TextError: someone/bare: cannot be read")
    assert "\n" not in reachable["no data"]


def test_transformers_loads_a_model_and_its_tokenizer_from_the_stand_in(reachable: dict[str, Any]) -> None:
    assert reachable["tokens"] == [2, 1]
    assert reachable["width"] == 8


def test_an_unreachable_hub_is_told_within_seconds(unreachable: dict[str, Any], hub: HubStandIn) -> None:
    said = unreachable["missing"]
    assert said.startswith(f"HubError: cannot reach {hub.endpoint} (Connection refused)")
    for part in ("'someone/nothing'", "local folder", "`embedded`", "connect"):
        assert part in said
    assert unreachable["missing, seconds"] < 5


def test_a_cached_model_serves_where_the_hub_is_out_of_reach(
    reachable: dict[str, Any], unreachable: dict[str, Any]
) -> None:
    repo_id, revision, local = unreachable["model"]
    assert (repo_id, revision) == tuple(reachable["model"][:2])
    assert Path(local).name == revision and (Path(local) / "model.safetensors").exists()
    assert unreachable["by commit"] == unreachable["model"]
    assert unreachable["offline, model"] == unreachable["model"]
    assert "revision 'v9' of the model 'someone/tiny'" in unreachable["other revision"]


def test_a_downloaded_data_set_serves_where_the_hub_is_out_of_reach(
    reachable: dict[str, Any], unreachable: dict[str, Any]
) -> None:
    assert unreachable["downloaded"] == reachable["table"]


def test_a_data_set_that_was_only_streamed_is_not_taken_for_a_cached_one(unreachable: dict[str, Any]) -> None:
    said = unreachable["only streamed"]
    assert said.startswith("HubError: cannot reach") and "does not hold the data set 'someone/lines'" in said


def test_offline_mode_is_named_as_the_reason(unreachable: dict[str, Any]) -> None:
    assert "HF_HUB_OFFLINE" in unreachable["offline, missing"]


def test_a_name_resolution_that_hangs_is_left_behind(unreachable: dict[str, Any]) -> None:
    assert "no answer within 0.5 s" in unreachable["name resolution hangs"]
    assert unreachable["name resolution hangs, seconds"] < 3


def test_the_deadline_is_short() -> None:
    from sae_lm.hub.revision import DEADLINE, TIMEOUT

    assert TIMEOUT <= DEADLINE < 6


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
