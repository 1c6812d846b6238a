"""Pins, models and data sets against a stand-in for the hub, which is then switched off.

The address of the hub is read when huggingface_hub is imported, so each state runs in a process of its own.
Both processes share one hub cache, as two commands of one user do.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hub_scripts import TOKEN, run
from hub_stand_in import HubStandIn

FAILING = {"someone/refused": 401, "someone/broken": 503}

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
snapshot_download("someone/parts", repo_type="dataset", allow_patterns=["*/train-00000-*", "*/test-*"])
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
note("a part of the files", read, "someone/parts")
note("all files of the other split", read, "someone/parts", split="test")

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
    for name in ("train-00000-of-00003", "train-00001-of-00003", "train-00002-of-00003", "test-00000-of-00001"):
        path = root / f"datasets/someone/parts/data/{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": name}) + "\n")
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


@pytest.fixture(scope="module")
def reachable(hub: HubStandIn, home: Path) -> dict[str, Any]:
    with hub:
        return run(REACHABLE, hub, home)


@pytest.fixture(scope="module")
def unreachable(reachable: dict[str, Any], hub: HubStandIn, home: Path) -> dict[str, Any]:
    with_a_password = hub.endpoint.replace("://", f"://name:{TOKEN}@")  # as some mirrors want it
    return run(UNREACHABLE, hub, home, with_a_password)


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


def test_a_data_set_of_which_numbered_files_are_missing_is_not_taken_for_the_whole(unreachable: dict[str, Any]) -> None:
    said = unreachable["a part of the files"]
    assert said.startswith(
        "TextError: someone/parts: the hub is out of reach, and the local hub cache holds 1 of the 3 "
    )
    assert "files train-*-of-00003; connect, or fetch them all with `hf download someone/parts" in said
    assert unreachable["all files of the other split"][-1] == ["test-00000-of-00001"]


def test_a_copy_that_may_be_a_part_is_said_to_be_read_where_the_hub_is_out_of_reach(
    reachable: dict[str, Any], unreachable: dict[str, Any]
) -> None:
    for name in ("someone/table", "someone/parts"):
        note = f"{name}: the hub is out of reach; the copy in the local hub cache is read, which may be a part of"
        assert unreachable["stderr"].count(note) == 1 and note not in reachable["stderr"]


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
