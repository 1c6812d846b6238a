"""sae-lm cache that is killed, stopped, shared out over processes or refused, and goes on to the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cache_runs import cache_until_shard, contents
from command_line import flags_of
from conftest import TEXTS

import sae_lm
from sae_lm.commands.cache import cache
from sae_lm.commands.verify import verify
from sae_lm.data.manifest import MANIFEST, PROGRESS
from sae_lm.errors import SaeLmError, StoreError

SUPPORT = Path(__file__).parents[1] / "support"


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


@pytest.mark.transformer_lens_3
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_shard_and_the_next_run_goes_on(cache_settings, tmp_path, number):
    settings = cache_settings(tmp_path / "store", tokens=5000, shard_tokens=32, batch_size=1)
    process = subprocess.Popen(
        [sys.executable, "-m", "sae_lm", "cache", *flags_of(settings)], stderr=subprocess.PIPE, text=True
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
sys.exit(main(["cache", *{flags_of(settings)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "the disk is full; free some room and run the same command again" in done.stderr
    assert "Traceback" not in done.stderr and not list(out.rglob("*.part"))
    cache(settings)
    assert contents(out) == contents(tiny_store)


HALTED = """
import sys
from sae_lm.cli import main
from sae_lm.data.shards import OpenShard
write = OpenShard.write
def halted(self, *given):
    if self.index == 3:
        print("halted", flush=True)
        sys.stdin.readline()
    return write(self, *given)
OpenShard.write = halted
sys.exit(main(sys.argv[1:]))
"""


def test_two_processes_do_not_write_one_store(cache_settings, tmp_path, tiny_store):
    settings = cache_settings(tmp_path / "store")
    command = [sys.executable, "-c", HALTED, "cache", *flags_of(settings)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert "halted\n" in iter(process.stdout.readline, ""), process.communicate()[1]
        with pytest.raises(StoreError, match=r"another process is writing .*; wait for its end, or give another --out"):
            cache(settings)
        assert process.poll() is None, process.communicate()[1]
        said = process.communicate("go on\n", timeout=60)[1]
    assert process.returncode == 0, said
    assert contents(settings.out) == contents(tiny_store)


# --- many processes


def torchrun(ranks, settings, **kill):
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "-m", "sae_lm", "cache", *flags_of(settings)],
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


@pytest.mark.transformer_lens_3
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


@pytest.mark.parametrize("name", ["long.txt", "rows.jsonl", "rows.parquet", "rows.csv.gz"])
def test_a_run_that_goes_on_does_not_read_the_text_from_its_beginning(cache_settings, tmp_path, monkeypatch, name):
    import csv
    import gzip

    import pyarrow.parquet

    import sae_lm.data.readers as readers

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
    settings, read = cache_settings(tmp_path / "store", **common), []
    cache_until_shard(25, settings, monkeypatch)
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
    whole = contents(cache(cache_settings(tmp_path / "whole")))
    settings = cache_settings(tmp_path / "store")
    cache_until_shard(7, settings, monkeypatch)
    places = sorted((settings.out / PROGRESS).glob("*.place.json"))
    assert len(places) == 7
    for place in places[:6]:
        place.unlink()
    places[6].write_text('["cut')
    assert contents(cache(settings)) == whole
