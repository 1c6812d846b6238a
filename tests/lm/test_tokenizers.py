"""A tokenizer is loaded once in a process, and anew where its files have changed: each that was used takes memory for good."""

import ctypes
import gc
import json
import shutil
import sys
import threading
from copy import copy
from types import SimpleNamespace

import pytest

from sae_lm.lm.source import find_model, load_tokenizer, saved_tokenizer

TEXTS = [f"words {number} of a text {number * 7919} that no other text has {number**3}" for number in range(2000)]


def test_the_same_files_give_the_same_tokenizer_and_changed_ones_another(tiny_model, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    first = load_tokenizer(find_model(str(folder)))
    monkeypatch.chdir(tmp_path)
    assert load_tokenizer(find_model("model")) is first
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 77}))
    other = load_tokenizer(find_model("model"))
    assert other is not first and other.model_max_length == 77


def test_a_tokenizer_without_a_name_is_not_taken_for_the_one_in_the_working_directory(tiny_model, monkeypatch):
    tokenizer = copy(load_tokenizer(find_model("embedded")))
    tokenizer.name_or_path = ""
    bridge = SimpleNamespace(tokenizer=tokenizer, original_model=SimpleNamespace(config=SimpleNamespace()))
    monkeypatch.chdir(tiny_model)
    assert saved_tokenizer(bridge) is tokenizer


def test_each_thread_has_its_own_as_one_may_not_be_used_by_two_at_once(tiny_model):
    found = []
    thread = threading.Thread(target=lambda: found.append(load_tokenizer(find_model(str(tiny_model)))))
    thread.start()
    thread.join()
    assert found[0] is not load_tokenizer(find_model(str(tiny_model)))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc counts what is in use")
def test_tokenizing_again_and_again_takes_no_more_memory():
    class Counts(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_size_t)
            for name in ["arena", "ord", "sm", "hblks", "hblkhd", "usm", "fsm", "used", "free", "keep"]
        ]

    try:
        count = ctypes.CDLL("libc.so.6").mallinfo2
    except (OSError, AttributeError):
        pytest.skip("this libc does not count")
    count.restype = Counts
    taken = []
    for _ in range(5):
        load_tokenizer(find_model("embedded"))(TEXTS)
        gc.collect()
        taken.append(count().used / 2**20)
    assert taken[-1] - taken[1] < 1.5, taken  # each of three tokenizers of its own takes a MB and more
