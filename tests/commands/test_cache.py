"""What is cached and what is left out; kills, signals, full disks, many ranks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TEXTS

import sae_lm
from sae_lm.commands.cache import cache
from sae_lm.commands.verify import verify
from sae_lm.data.manifest import MANIFEST, PROGRESS
from sae_lm.errors import ModelError, SaeLmError, SettingsError, StoreError, TextError

pytestmark = pytest.mark.transformer_lens_3

SUPPORT = Path(__file__).parents[1] / "support"


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flags(settings):
    """The command line that has these settings."""
    pairs = {name: value for name, value in settings.model_dump(mode="json").items() if value is not None}
    shown = {name: ",".join(value) if isinstance(value, list) else value for name, value in pairs.items()}
    return [
        f"--{'' if value is not False else 'no-'}{name.replace('_', '-')}" + ("" if isinstance(value, bool) else f"={value}")
        for name, value in shown.items()
    ]  # fmt: skip


# --- which tokens


def test_packing_and_batch_order_do_not_change_which_tokens_are_cached(cache_settings, tmp_path):
    """Without packing contexts are run sorted by length; rows and their order stay those of the text."""
    whole = sae_lm.open_store(cache(cache_settings(tmp_path / "packed", tokens=10**6)))
    alone = sae_lm.open_store(cache(cache_settings(tmp_path / "alone", tokens=10**6, pack=False)))
    number = len(whole)  # packing drops an incomplete last context
    assert torch.equal(alone.tokens(0, number)["token_id"], whole.tokens()["token_id"])
    assert torch.equal(alone.tokens(0, number)["document"], whole.tokens()["document"])
    padding = sum(shard.padding for shard in alone.manifest.shards)
    special = sum(shard.special_tokens for shard in alone.manifest.shards)
    assert padding > 0 and len(alone) + padding + special == alone.manifest.contexts * 16


def test_rows_of_padded_contexts_are_the_models_own(cache_settings, tmp_path, tiny_model):
    store = sae_lm.open_store(cache(cache_settings(tmp_path / "alone", tokens=1000, pack=False)))
    model, tokens = sae_lm.load_model(str(tiny_model)), store.tokens()
    for context in (0, 11, 40):
        mine = (tokens["context"] == context).nonzero().flatten()
        length = int(tokens["position"][mine[-1]]) + 1
        ids = store.blocks(context, context + 1)[:, :length].long()
        with torch.inference_mode():
            _, seen = model.run_with_cache(ids, names_filter=["blocks.1.hook_out"])
        rows = store.rows("blocks.1.hook_out")[mine]
        torch.testing.assert_close(
            rows, seen["blocks.1.hook_out"][0][tokens["position"][mine].long()], atol=2e-5, rtol=1e-5
        )


@pytest.fixture
def awkward_text(tmp_path):
    """Documents whose lengths divide by the room of a context, which leaves contexts of BOS and separator alone."""
    path = tmp_path / "awkward.jsonl"
    path.write_text(
        "".join(json.dumps({"text": "a b c d e f g h " * (1 + i % 3) + "z" * (i % 4)}) + "\n" for i in range(120))
    )
    return path


AWKWARD = [
    {"pack": False, "context_size": 5},
    {"context_size": 2},
    {"pack": False, "context_size": 6, "drop_sinks": 1.1},
    {"context_size": 4, "drop_sinks": 1.05, "keep_special": True},
]


@pytest.mark.parametrize("changes", AWKWARD, ids=str)
def test_every_row_is_where_its_context_and_position_say(cache_settings, awkward_text, tmp_path, changes):
    settings = cache_settings(tmp_path / "store", text=str(awkward_text), tokens=700, shard_tokens=40, **changes)
    store = sae_lm.open_store(cache(settings))
    tokens, blocks = store.tokens(), store.blocks()
    assert torch.equal(blocks[tokens["context"].long(), tokens["position"].long()], tokens["token_id"])
    rows = set(zip(tokens["context"].tolist(), tokens["position"].tolist(), strict=True))
    expected = [[(context, place) not in rows for place in range(blocks.shape[1])] for context in range(len(blocks))]
    assert store.rowless(0, len(blocks)).tolist() == expected
    assert store.rowless(5, 9).tolist() == expected[5:9]
    assert len(store.manifest.shards) > 10 and len(store) == 700 and len(blocks) == store.manifest.contexts
    assert any(bool(store.special(context[None]).all()) for context in blocks) or changes.get("keep_special")


@pytest.mark.parametrize("changes", AWKWARD, ids=str)
def test_awkward_stores_resume_and_are_repaired_to_the_same_bytes(
    cache_settings, awkward_text, tmp_path, changes, monkeypatch
):
    from sae_lm.data.repair import repair
    from sae_lm.data.shards import OpenShard

    common = {"text": str(awkward_text), "tokens": 700, "shard_tokens": 40, **changes}
    whole = contents(cache(cache_settings(tmp_path / "whole", **common)))
    settings, real = cache_settings(tmp_path / "store", **common), OpenShard.write

    def dies(self, *arguments):
        if self.index == 7:
            raise KeyboardInterrupt
        return real(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(OpenShard, "write", dies)
        cache(settings)
    assert contents(cache(settings)) == whole
    for index in (3, 8, 9):
        (settings.out / "blocks.1.hook_out" / f"{index:05d}.safetensors").unlink()
    repair(settings.out, settings.model, settings.text)
    assert contents(settings.out) == whole


def test_special_tokens_have_rows_when_they_are_kept(cache_settings, tmp_path, tiny_store):
    store = sae_lm.open_store(cache(cache_settings(tmp_path / "kept", tokens=320, keep_special=True)))
    assert store.manifest.contexts == 20  # every position is a row
    assert torch.equal(store.tokens()["token_id"], store.blocks().flatten())
    counted = sum(shard.special_tokens for shard in store.manifest.shards)
    assert counted == int(store.special(store.blocks()).sum()) >= 20


def test_a_text_is_repeated_only_when_asked(cache_settings, tmp_path):
    once = sae_lm.open_store(cache(cache_settings(tmp_path / "once", tokens=10**6)))
    wanted = 2 * len(once) + 100
    store = sae_lm.open_store(cache(cache_settings(tmp_path / "again", tokens=wanted, repeat=True)))
    assert len(store) == wanted and not store.manifest.text_ended and store.manifest.documents == 40
    text = "".join(store.vocabulary[token] for token in store.tokens()["token_id"])
    assert text.startswith("".join(TEXTS) * 2)
    assert store.text_repeats and not once.text_repeats
    early = sae_lm.open_store(cache(cache_settings(tmp_path / "early", tokens=len(once) - 20, repeat=True)))
    assert not early.text_repeats, "allowed, and did not come to it"


def test_attention_sinks_are_left_out_and_counted(cache_settings, tmp_path, tiny_model):
    settings = cache_settings(tmp_path / "whole", keep_special=True, tokens=400)
    whole = sae_lm.open_store(cache(settings))
    norms = {hook: whole.rows(hook).norm(dim=1) for hook in whole.hooks}
    limit = 1.15
    store = sae_lm.open_store(cache(cache_settings(tmp_path / "less", keep_special=True, tokens=300, drop_sinks=limit)))
    kept = torch.ones(400, dtype=torch.bool)
    for hook, norm in norms.items():
        assert store.manifest.sink_norms[hook] > limit * 0.9 * float(norm.median())
        kept &= norm <= store.manifest.sink_norms[hook]
    rows = kept.nonzero().flatten()[:300]
    assert len(store) == 300 and len(rows) == 300
    for hook in store.hooks:
        torch.testing.assert_close(store.rows(hook), whole.rows(hook)[rows], atol=2e-5, rtol=1e-5)
    sinks = sum(shard.sinks for shard in store.manifest.shards)
    used = store.manifest.contexts * 16
    assert sinks == int((~kept[:used]).sum()) > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("position", [0, 5])
def test_what_is_not_finite_is_no_sink(cache_settings, tmp_path, tiny_model, value, position):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["transformer.wpe.weight"][position] = value
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StoreError, match=r"gave a NaN or infinite activation at document 0"):
        cache(cache_settings(tmp_path / "store", model=str(broken), drop_sinks=10.0, keep_special=True))


def test_numbers_beyond_float16_are_said_to_be(cache_settings, tmp_path, tiny_model):
    import shutil

    from safetensors.torch import load_file, save_file

    loud = shutil.copytree(tiny_model, tmp_path / "loud")
    weights = load_file(loud / "model.safetensors")
    weights["transformer.wpe.weight"][5] = 1e5
    save_file(weights, loud / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StoreError, match="beyond float16's largest number; cache with --dtype bfloat16"):
        cache(cache_settings(tmp_path / "store", model=str(loud), dtype="float16"))
    cache(cache_settings(tmp_path / "other", model=str(loud), dtype="bfloat16", tokens=50))


@pytest.mark.parametrize("repeat", [False, True])
def test_a_text_without_a_token_that_gets_a_row_ends(cache_settings, tmp_path, repeat):
    text = tmp_path / "special.jsonl"
    text.write_text('{"text": "<|end|><|end|><|end|>"}\n' * 200)
    for changes in ({}, {"drop_sinks": 3.0}, {"pack": False}):
        with pytest.raises(TextError, match="with a token that gets a row"):
            cache(cache_settings(tmp_path / "store", text=str(text), repeat=repeat, **changes))
    assert not (tmp_path / "store").exists()


def test_a_run_killed_in_its_first_moments_is_begun_again(cache_settings, tmp_path, tiny_store):
    settings = cache_settings(tmp_path / "store")
    (settings.out / PROGRESS).mkdir(parents=True)
    for name in ("lock", "recipe.json.part"):
        (settings.out / PROGRESS / name).touch()
    assert contents(cache(settings)) == contents(tiny_store)


def test_what_is_not_ours_is_never_deleted(cache_settings, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("hi")
    for name in ("progress/thesis.txt", "photos/download.part"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True)
        (tmp_path / "mine" / name).write_text("years of work")
    before = contents(tmp_path / "mine")
    for settings in (cache_settings(tmp_path / "mine"), cache_settings(tmp_path / "mine", text=str(short))):
        with pytest.raises(StoreError, match="not empty and not an activation store"):
            cache(settings)
    assert contents(tmp_path / "mine") == before


def test_a_store_inside_the_folder_of_its_text_is_refused(cache_settings, text_file, tmp_path):
    import shutil

    folder = tmp_path / "texts"
    folder.mkdir()
    shutil.copy(text_file, folder)
    with pytest.raises(SettingsError, match="inside the text's folder"):
        cache(cache_settings(folder / "acts", text=str(folder)))
    assert [path.name for path in folder.iterdir()] == [text_file.name]


def test_a_shard_that_vanished_while_caching_is_not_taken_for_the_texts_end(
    cache_settings, tmp_path, monkeypatch, tiny_store
):
    from sae_lm.data.shards import OpenShard

    settings, real = cache_settings(tmp_path / "store"), OpenShard.write
    last = len(sae_lm.open_store(tiny_store).manifest.shards) - 1

    def loses_one(shard, *arguments):
        if shard.index == last:
            (settings.out / "tokens" / "00002.safetensors").unlink()
        return real(shard, *arguments)

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="files of a shard are gone"):
        patch.setattr(OpenShard, "write", loses_one)
        cache(settings)
    assert contents(cache(settings)) == contents(tiny_store)


def test_hooks_are_named_by_number_alias_and_glob(cache_settings, tmp_path):
    for hooks, expected in {
        "0,-1": ["blocks.0.hook_out", "blocks.2.hook_out"],
        "blocks.*.hook_out": [f"blocks.{i}.hook_out" for i in range(3)],
        "blocks.[12].hook_resid_pre": ["blocks.1.hook_in", "blocks.2.hook_in"],
        "blocks.1.hook_resid_post,1": ["blocks.1.hook_out"],
        "blocks.*.hook_attn_out": [f"blocks.{i}.hook_attn_out" for i in range(3)],
    }.items():
        store = sae_lm.open_store(cache(cache_settings(tmp_path / hooks.replace("*", "x"), tokens=50, hooks=hooks)))
        assert list(store.hooks) == expected, hooks
    with pytest.raises(ModelError, match=r"'7' is not a hook point .* residual streams are 0 to 2"):
        cache(cache_settings(tmp_path / "none", hooks="7"))


def test_what_cannot_be_computed_fast_is_refused_when_asked_for(cache_settings, tmp_path):
    with pytest.raises(
        SettingsError, match="got hooks blocks.0.hook_attn_out of GPT2LMHeadModel; give --forward bridge"
    ):
        cache(cache_settings(tmp_path / "store", hooks="blocks.0.hook_attn_out", forward="huggingface"))


# --- ends that nobody planned


@pytest.mark.parametrize(
    "changes", [{}, {"pack": False, "drop_sinks": 1.15, "keep_special": True, "tokens": 3000}], ids=str
)
def test_caching_killed_again_and_again_ends_with_the_same_bytes(cache_settings, tmp_path, changes):
    settings = cache_settings(tmp_path, **{"tokens": 4000, "shard_tokens": 64, "batch_size": 2, **changes})
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    command = [sys.executable, str(SUPPORT / "kills.py"), "cache", str(tmp_path / "settings.json"), "5", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == 5


def test_what_a_killed_run_was_writing_is_deleted_by_the_next(cache_settings, tmp_path, monkeypatch, tiny_store):
    from sae_lm.data.shards import OpenShard

    settings = cache_settings(tmp_path / "store")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(OpenShard, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        cache(settings)
    for name in ("tokens/.tmpYK5tq", "blocks.0.hook_out/00007.safetensors", "stats.safetensors.part", ".tmpabcDEF",
                 "progress/00003.json.part", "blocks.1.hook_out/00000.safetensors.part"):  # fmt: skip
        (settings.out / name).parent.mkdir(exist_ok=True)
        (settings.out / name).write_bytes(b"half")
    cache(settings)
    assert contents(settings.out) == contents(tiny_store)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_shard_and_the_next_run_goes_on(cache_settings, tmp_path, number):
    settings = cache_settings(tmp_path / "store", tokens=5000, shard_tokens=32, batch_size=1)
    process = subprocess.Popen(
        [sys.executable, "-m", "sae_lm", "cache", *flags(settings)], stderr=subprocess.PIPE, text=True
    )
    records = settings.out / PROGRESS
    while process.poll() is None and len(list(records.glob("0*.json"))) < 3:
        time.sleep(0.005)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, said
    assert "stopping after this shard" in said and "run the same command again to go on" in said
    assert len(list(records.glob("0*.json"))) >= 3 and not list(settings.out.rglob("*.part"))
    cache(settings)
    assert len(sae_lm.open_store(settings.out, checksums=True)) == 5000


def test_a_full_disk_is_one_sentence_and_the_run_can_go_on(cache_settings, tmp_path, tiny_store):
    """RLIMIT_FSIZE stands in for the disk: beyond it the system refuses to write, with another error number."""
    out = tmp_path / "store"
    settings = cache_settings(out)
    program = f"""
import resource, sys
from sae_lm.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
sys.exit(main(["cache", *{flags(settings)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "the disk is full; free some room and run the same command again" in done.stderr
    assert "Traceback" not in done.stderr and not list(out.rglob("*.part"))
    cache(settings)
    assert contents(out) == contents(tiny_store)


def test_two_processes_do_not_write_one_store(cache_settings, tmp_path, tiny_store):
    settings = cache_settings(tmp_path / "store", tokens=5000, shard_tokens=32, batch_size=1)
    process = subprocess.Popen([sys.executable, "-m", "sae_lm", "cache", *flags(settings)], stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list((settings.out / PROGRESS).glob("0*.json"))) < 2:
        time.sleep(0.005)
    with pytest.raises(StoreError, match=r"another process is writing .*; wait for its end, or give another --out"):
        cache(settings)
    assert process.wait(timeout=60) == 0
    assert len(sae_lm.open_store(settings.out, checksums=True)) == 5000


# --- many processes


def torchrun(ranks, settings, **kill):
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "-m", "sae_lm", "cache", *flags(settings)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    while kill and process.poll() is None and len(list((settings.out / PROGRESS).glob("0*.json"))) < kill["shards"]:
        time.sleep(0.01)
    if kill:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
    said = process.communicate(timeout=120)[0]
    return process.returncode, said


def test_ranks_write_the_very_store_that_one_process_writes(cache_settings, tiny_store, tmp_path):
    settings = cache_settings(tmp_path / "store")
    code, said = torchrun(3, settings)
    assert code == 0, said
    assert contents(settings.out) == contents(tiny_store)


def test_ranks_drop_the_same_sinks_as_one_process(cache_settings, tmp_path):
    changes = {"drop_sinks": 1.15, "keep_special": True, "tokens": 900}
    alone = cache(cache_settings(tmp_path / "alone", **changes))
    settings = cache_settings(tmp_path / "store", **changes)
    code, said = torchrun(2, settings)
    assert code == 0, said
    assert contents(settings.out) == contents(alone)


def test_a_text_that_cannot_be_read_on_ends_all_ranks_with_its_sentence(cache_settings, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS) + "{broken\n")
    code, said = torchrun(2, cache_settings(tmp_path / "store", text=str(text), tokens=10**6, repeat=True))
    assert code != 0 and said.count("text.jsonl: cannot be read") == 2 and "lost another" not in said


def test_a_dead_rank_corrupts_nothing_and_another_number_of_ranks_goes_on(cache_settings, tmp_path):
    changes = {"tokens": 5000, "shard_tokens": 32, "batch_size": 1}
    alone = cache(cache_settings(tmp_path / "alone", **changes))
    settings = cache_settings(tmp_path / "store", **changes)
    code, _ = torchrun(3, settings, shards=6)
    assert code != 0 and not (settings.out / MANIFEST).exists()
    with pytest.raises(SaeLmError, match="unfinished"):
        sae_lm.open_store(settings.out)
    code, said = torchrun(2, settings)
    assert code == 0, said
    assert verify(settings.out) == []
    assert contents(settings.out) == contents(alone)


def test_settings_survive_the_way_over_the_command_line(cache_settings, tmp_path):
    from sae_lm.cli import parse

    settings = cache_settings(tmp_path / "store", pack=False, repeat=True, drop_sinks=7.5)
    assert parse(["cache", *flags(settings)]) == ("cache", settings)
    assert json.loads(settings.model_dump_json())["hooks"] == list(settings.hooks)


@pytest.mark.parametrize("name", ["long.txt", "rows.jsonl", "rows.parquet", "rows.csv.gz"])
def test_a_run_that_goes_on_does_not_read_the_text_from_its_beginning(cache_settings, tmp_path, monkeypatch, name):
    import csv
    import gzip

    import pyarrow.parquet

    import sae_lm.data.readers as readers
    from sae_lm.data.shards import OpenShard

    monkeypatch.setattr(readers, "TEXT_BYTES", 500)
    monkeypatch.setattr("sae_lm.data.pieces.PIECE", 1000)
    monkeypatch.setattr("sae_lm.data.tokens.CHARACTERS_PER_CALL", 2000)
    path, rows = tmp_path / name, [{"text": text} for text in TEXTS]
    if name == "long.txt":
        path.write_text("\n".join(TEXTS))
    elif name == "rows.jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name == "rows.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=4)
    else:
        with gzip.open(path, "wt", newline="") as file:
            writer = csv.DictWriter(file, ["text"])
            writer.writeheader()
            writer.writerows(rows)
    common = {"text": str(path), "tokens": 4000}
    whole = contents(cache(cache_settings(tmp_path / "whole", **common)))
    settings, real, read = cache_settings(tmp_path / "store", **common), OpenShard.write, []

    def dies(self, *arguments):
        if self.index == 25:
            raise KeyboardInterrupt
        return real(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(OpenShard, "write", dies)
        cache(settings)
    real_read = readers.Files.read

    def noted(self, place=None, column=None):
        for row in real_read(self, place, column):
            read.append(row)
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(readers.Files, "read", noted)
        assert contents(cache(settings)) == whole
    first_rows = 16 if name != "long.txt" else len(TEXTS)  # those that tell which column holds the text
    assert len(read) - min(first_rows, 16) < (12 if name != "long.txt" else 20)
    assert not (settings.out / PROGRESS).exists()


def test_a_run_goes_on_where_an_earlier_version_noted_no_place(cache_settings, tmp_path, monkeypatch):
    from sae_lm.data.shards import OpenShard

    whole = contents(cache(cache_settings(tmp_path / "whole")))
    settings, real = cache_settings(tmp_path / "store"), OpenShard.write

    def dies(self, *arguments):
        if self.index == 7:
            raise KeyboardInterrupt
        return real(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(OpenShard, "write", dies)
        cache(settings)
    places = sorted((settings.out / PROGRESS).glob("*.place.json"))
    assert len(places) == 7
    for place in places[:6]:
        place.unlink()
    places[6].write_text('["cut')
    assert contents(cache(settings)) == whole


def test_a_few_rows_without_sinks_do_not_take_a_whole_shard(cache_settings, tmp_path, monkeypatch):
    """The rows are those of a store that goes on; what the model is given is bounded by what is asked for."""
    from sae_lm.data.writer import ShardMaker

    common = {"drop_sinks": 1.15, "shard_tokens": 16 * 1000, "tokens": 1500}
    long = sae_lm.open_store(cache(cache_settings(tmp_path / "long", **common)))
    real, contexts = ShardMaker.activations, []

    def counted(self, batch, longest):
        contexts.append(len(batch))
        return real(self, batch, longest)

    monkeypatch.setattr(ShardMaker, "activations", counted)
    monkeypatch.setattr("sae_lm.data.writer.SINK_SAMPLE", 64)
    monkeypatch.setattr(ShardMaker, "sink_norms", lambda self: long.manifest.sink_norms)
    short = sae_lm.open_store(cache(cache_settings(tmp_path / "short", **{**common, "tokens": 100})))
    assert sum(contexts) < 20 and len(long.manifest.shards) == 1
    for name, values in short.tokens().items():
        assert torch.equal(values, long.tokens(0, 100)[name])
    assert torch.equal(short.rows("0"), long.rows("0", 0, 100))


@pytest.mark.parametrize("ends", [100, 333])
def test_a_few_rows_without_packing_take_no_more_batches_than_contexts_they_are_of(
    cache_settings, tmp_path, monkeypatch, ends
):
    from sae_lm.data.writer import ShardMaker

    common = {"drop_sinks": 1.15, "shard_tokens": 16 * 1000, "tokens": 1500, "pack": False, "batch_size": 2}
    long = sae_lm.open_store(cache(cache_settings(tmp_path / "long", **common)))
    real, batches = ShardMaker.activations, []

    def counted(self, batch, longest):
        batches.append(len(batch))
        return real(self, batch, longest)

    monkeypatch.setattr(ShardMaker, "activations", counted)
    monkeypatch.setattr(ShardMaker, "sink_norms", lambda self: long.manifest.sink_norms)
    short = sae_lm.open_store(cache(cache_settings(tmp_path / "short", **{**common, "tokens": ends})))
    assert len(long.manifest.shards) == 1 and len(batches) <= short.manifest.contexts < long.manifest.contexts / 3
    assert short.manifest.shards[0].sinks > 0
    for name, values in short.tokens().items():
        assert torch.equal(values, long.tokens(0, ends)[name])
    assert torch.equal(short.rows("0"), long.rows("0", 0, ends))


def test_of_several_ranks_the_first_alone_makes_tokens(cache_settings, tmp_path, monkeypatch):
    from sae_lm.commands import cache as command
    from sae_lm.data.partial_store import PartialStore
    from sae_lm.data.writer import ShardMaker, open_writer
    from sae_lm.runtime.distributed import Ranks

    settings = cache_settings(tmp_path / "store")
    with open_writer(settings) as maker:
        dealt = [*command._turns(maker.jobs({}), Ranks(0, 1, 0)), None]
        shards = len(dealt) - 1
        monkeypatch.setattr(ShardMaker, "jobs", lambda *given: pytest.fail("a rank beside the first makes tokens"))
        monkeypatch.setattr(Ranks, "dealt", lambda self, deal: dealt.pop(0))
        monkeypatch.setattr(Ranks, "gather", lambda self, value: [value])
        state = PartialStore(settings.out, maker.recipe)
        state.begin(maker.batch_size, {})
        command._fill(maker, state, Ranks(1, 2, 1))
    assert len([*(settings.out / PROGRESS).glob("*.place.json")]) == shards > 10 and not dealt


def test_rows_with_extreme_norms_are_counted_with_what_leaves_them_out(cache_settings, tmp_path, tiny_model, capsys):
    import shutil

    from safetensors.torch import load_file, save_file

    cache(cache_settings(tmp_path / "even"))
    assert "median" not in capsys.readouterr().out
    model = shutil.copytree(tiny_model, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["transformer.wpe.weight"][3] *= 1e4  # one position of each context is a sink
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    store = sae_lm.open_store(cache(cache_settings(tmp_path / "store", model=str(model))))
    sinks = int((store.tokens()["position"] == 3).sum())
    assert f"{sinks} of 1,500 rows of blocks.0.hook_out have norms beyond 10 times" in capsys.readouterr().out
    assert store.rows_beyond(10.0, "0") == sinks
    cache(cache_settings(tmp_path / "dropped", model=str(model), drop_sinks=10.0))
    assert "median" not in capsys.readouterr().out
