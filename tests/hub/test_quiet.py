"""Libraries are silent while they are used here, and as the user left them afterwards."""

import logging
import os
import subprocess
import sys
import threading
from contextlib import suppress

import datasets
import pytest
import torch
from datasets import are_progress_bars_disabled as datasets_are_silent
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from huggingface_hub.utils.tqdm import progress_bar_states
from transformers.utils import logging as transformers_logging

import sae_lm
import sae_lm.lm.bridge  # transformer_lens sets the level of transformers' log when it is imported
from sae_lm.data.text import open_text
from sae_lm.errors import ModelError
from sae_lm.hub.quiet import quiet
from sae_lm.lm.source import find_model, load_tokenizer

pytestmark = pytest.mark.transformer_lens_3


def state():
    return {
        "hub bars": dict(progress_bar_states),
        "hub level": logging.getLogger("huggingface_hub").level,
        "transformers bars": transformers_logging.is_progress_bar_enabled(),
        "transformers verbosity": transformers_logging.get_verbosity(),
        "datasets bars": not datasets_are_silent(),
    }


@pytest.fixture(params=["bars on", "bars off"])
def left_by_the_user(request):
    """What a user has set; all of it is put back after the test."""
    before, level = state(), logging.getLogger("huggingface_hub").level
    on = request.param == "bars on"
    (transformers_logging.enable_progress_bar if on else transformers_logging.disable_progress_bar)()
    (datasets.enable_progress_bars if on else datasets.disable_progress_bars)()
    transformers_logging.set_verbosity(logging.WARNING if on else logging.DEBUG)
    (enable_progress_bars if on else disable_progress_bars)("a.group")
    logging.getLogger("huggingface_hub").setLevel(logging.WARNING if on else logging.INFO)
    yield state()
    (
        transformers_logging.enable_progress_bar
        if before["transformers bars"]
        else transformers_logging.disable_progress_bar
    )()
    (datasets.enable_progress_bars if before["datasets bars"] else datasets.disable_progress_bars)()
    transformers_logging.set_verbosity(before["transformers verbosity"])
    progress_bar_states.clear()
    progress_bar_states.update(before["hub bars"])
    logging.getLogger("huggingface_hub").setLevel(level)


def test_inside_the_block_all_is_silent_and_afterwards_as_before(left_by_the_user):
    with quiet("transformers", "datasets"):
        assert are_progress_bars_disabled() and are_progress_bars_disabled("a.group") and datasets_are_silent()
        assert not transformers_logging.is_progress_bar_enabled()
        assert transformers_logging.get_verbosity() == logging.ERROR
        assert logging.getLogger("huggingface_hub").level != logging.WARNING
    assert state() == left_by_the_user


def test_an_exception_restores_as_well(left_by_the_user):
    with suppress(KeyboardInterrupt), quiet("transformers", "datasets"):
        raise KeyboardInterrupt
    assert state() == left_by_the_user


def test_of_nested_blocks_the_outer_one_stays_silent_to_its_end(left_by_the_user):
    with quiet():
        with quiet("transformers", "datasets"):
            pass
        assert are_progress_bars_disabled() and not transformers_logging.is_progress_bar_enabled()
        with suppress(ValueError), quiet("datasets"):
            raise ValueError
        assert are_progress_bars_disabled()
    assert state() == left_by_the_user


def test_blocks_of_several_threads_restore_when_the_last_has_ended(left_by_the_user):
    entered, leave = threading.Event(), threading.Event()

    def other():
        with quiet("datasets"):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with quiet("transformers"):
        thread.start()
        assert entered.wait(10)
    assert are_progress_bars_disabled() and datasets_are_silent()
    leave.set()
    thread.join()
    assert state() == left_by_the_user


def test_loading_models_and_texts_leaves_the_users_settings_alone(left_by_the_user, tiny_model, text_file, tmp_path):
    model = sae_lm.load_model(str(tiny_model), device="cpu", dtype=torch.float32)
    assert state() == left_by_the_user
    load_tokenizer(find_model(str(tiny_model)))
    assert state() == left_by_the_user
    documents = open_text(str(text_file)).documents()
    next(documents)
    assert state() == left_by_the_user, "while the text is still being read"
    assert len(list(documents)) == 39 and model.cfg.n_layers == 3
    assert state() == left_by_the_user
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be loaded"):
        sae_lm.load_model(str(tmp_path))
    assert state() == left_by_the_user


def test_caching_leaves_the_users_settings_alone(left_by_the_user, cache_settings, tmp_path):
    sae_lm.cache(cache_settings(tmp_path / "store", tokens=50))
    assert state() == left_by_the_user


def test_the_level_is_kept_that_huggingface_hub_sets_itself_when_its_log_is_imported():
    program = """
import logging
from sae_lm.hub.quiet import quiet
with quiet():
    assert logging.getLogger("huggingface_hub").level == logging.ERROR
print(logging.getLogger("huggingface_hub").level)
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_VERBOSITY", "HF_DEBUG")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == f"{logging.WARNING}\n", done.stderr[-2000:]


@pytest.mark.parametrize("value", ["0", "1"])
def test_what_an_environment_variable_has_decided_is_neither_changed_nor_warned_of(value):
    """Where it is set, huggingface_hub warns at each attempt to decide otherwise."""
    program = """
import warnings
warnings.simplefilter("error")
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging
from sae_lm.hub.quiet import quiet
before = are_progress_bars_disabled(), logging.is_progress_bar_enabled()
with quiet("transformers", "datasets"):
    assert not logging.is_progress_bar_enabled()
    assert are_progress_bars_disabled() == before[0]
print(before == (are_progress_bars_disabled(), logging.is_progress_bar_enabled()))
"""
    environment = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": value, "HF_DATASETS_DISABLE_PROGRESS_BARS": value}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr[-2000:]
