"""Silence the libraries of Hugging Face within a block; after it they are as they were before.

Their progress bars do not become lines in a pipe, and their notices of retries quote the hub's address, password
included. Both are settings of the whole process, which belongs to the user.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import Literal

Library = Literal["huggingface_hub", "transformers", "datasets"]

_lock = Lock()
_blocks = 0
"""How many quiet blocks are open, nested or in several threads. The last one to close restores."""
_restore: dict[str, Callable[[], None]] = {}
"""What restores the settings of each silenced library."""


@contextmanager
def quiet(*libraries: Library) -> Iterator[None]:
    """No progress bars and no notices of these libraries inside the block, and of huggingface_hub in any case.

    Blocks may be nested, and open in several threads at once. A library that is silenced should be imported before
    the block: transformers, when it is imported, takes over whether huggingface_hub shows bars.
    """
    global _blocks
    with _lock:
        _blocks += 1
    try:
        with _lock:
            for library in ("huggingface_hub", *libraries):
                if library not in _restore:
                    _restore[library] = _SILENCE[library]()
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks:
                while _restore:  # the last silenced first: what restores transformers touches huggingface_hub
                    _restore.popitem()[1]()


def _silence_huggingface_hub() -> Callable[[], None]:
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging  # sets the level when it is imported
    from huggingface_hub.utils.tqdm import progress_bar_states

    bars, logger = dict(progress_bar_states), hub_logging.get_logger("huggingface_hub")
    level = logger.level
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:  # else that variable decides, and a call would only warn
        disable_progress_bars()
    if level == logging.WARNING:  # else somebody has asked for another level
        logger.setLevel(logging.ERROR)

    def restore() -> None:
        progress_bar_states.clear()
        progress_bar_states.update(bars)
        logger.setLevel(level)

    return restore


def _silence_transformers() -> Callable[[], None]:
    from huggingface_hub import constants
    from transformers.utils import logging as transformers_logging

    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    decided = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None

    def show_bars(shown: bool) -> None:
        """Of transformers and of huggingface_hub, which warns where an environment variable has decided."""
        with warnings.catch_warnings() if decided else nullcontext():
            if decided:
                warnings.simplefilter("ignore")
            (transformers_logging.enable_progress_bar if shown else transformers_logging.disable_progress_bar)()

    def restore() -> None:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            show_bars(True)

    if bars:
        show_bars(False)
    transformers_logging.set_verbosity_error()
    return restore


def _silence_datasets() -> Callable[[], None]:
    import datasets
    from datasets import config

    if datasets.are_progress_bars_disabled() or config.HF_DATASETS_DISABLE_PROGRESS_BARS is not None:
        return lambda: None
    datasets.disable_progress_bars()
    return datasets.enable_progress_bars


_SILENCE: dict[str, Callable[[], Callable[[], None]]] = {
    "huggingface_hub": _silence_huggingface_hub,
    "transformers": _silence_transformers,
    "datasets": _silence_datasets,
}
