"""Silence the libraries of Hugging Face within a block; after it they are as they were before.

What tokenizers warn of is kept for the user (`overheard`). Their progress bars do not become lines in a pipe, and their notices of retries quote the hub's address, password
included. Both are settings of the whole process, which belongs to the user.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from importlib import import_module
from threading import Lock
from typing import Literal

Library = Literal["huggingface_hub", "transformers", "datasets"]

_lock = Lock()
_blocks = 0
"""How many blocks are open, nested or in several threads. The last one to close restores."""
_silenced: set[str] = set()
_restore = ExitStack()
"""What restores the settings that were changed, the last first: what restores transformers touches huggingface_hub."""


@contextmanager
def quiet(*libraries: Library) -> Iterator[None]:
    """No progress bars and no notices of these libraries inside the block, and of huggingface_hub in any case.

    Blocks may be nested, and open in several threads at once. What somebody else sets meanwhile stays as it is set.
    """
    for library in libraries:  # transformers, when it is imported, takes over whether huggingface_hub shows bars
        import_module(library)
    with _without("notices", "huggingface_hub", *libraries):
        yield


@contextmanager
def without_notices() -> Iterator[None]:
    """No notices of huggingface_hub inside the block, but its progress bars."""
    with _without("notices"):
        yield


@contextmanager
def overheard(part: str) -> Iterator[list[str]]:
    """Inside the block, what transformers' loggers with ``part`` in their name warn of goes into the list, each once.

    As one line each, also where transformers is to be quiet; nothing of it is printed.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.get_verbosity()  # sets its logger up where nobody has
    logger, said = logging.getLogger("transformers"), list[str]()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = " ".join(record.getMessage().split())
            if record.levelno == logging.WARNING and part in record.name and line not in said:
                said.append(line)

    def loud_enough(record: logging.LogRecord) -> bool:
        return record.levelno >= level

    level, others, listener = logger.level, list(logger.handlers), Listener()
    for handler in others:
        handler.addFilter(loud_enough)
    logger.addHandler(listener)
    logger.setLevel(min(level, logging.WARNING) or logging.WARNING)
    try:
        yield said
    finally:
        logger.setLevel(level)
        logger.removeHandler(listener)
        for handler in others:
            handler.removeFilter(loud_enough)


@contextmanager
def _without(*kinds: str) -> Iterator[None]:
    global _blocks
    with _lock:
        _blocks += 1
    try:
        with _lock:
            for kind in kinds:
                if kind not in _silenced:
                    _restore.callback(_SILENCE[kind]())
                    _silenced.add(kind)
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks:
                _silenced.clear()
                _restore.close()


def _silence_notices() -> Callable[[], None]:
    from huggingface_hub.utils import logging as hub_logging  # sets the level when it is imported

    logger = hub_logging.get_logger("huggingface_hub")
    level = logger.level
    if level != logging.WARNING:  # somebody has asked for another level
        return lambda: None
    logger.setLevel(logging.ERROR)
    return lambda: logger.setLevel(level) if logger.level == logging.ERROR else None


def _silence_huggingface_hub() -> Callable[[], None]:
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils.tqdm import progress_bar_states

    bars = dict(progress_bar_states)
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:  # else that variable decides, and a call would only warn
        disable_progress_bars()
    silenced = dict(progress_bar_states)

    def restore() -> None:
        if progress_bar_states == silenced:
            progress_bar_states.clear()
            progress_bar_states.update(bars)

    return restore


def _silence_transformers() -> Callable[[], None]:
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import progress_bar_states
    from transformers.utils import logging as transformers_logging

    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    decided = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None

    def show_bars(shown: bool) -> None:
        """Of transformers alone: it sets those of huggingface_hub too, which warns where a variable has decided."""
        of_hub = dict(progress_bar_states)
        with warnings.catch_warnings() if decided else nullcontext():
            if decided:
                warnings.simplefilter("ignore")
            (transformers_logging.enable_progress_bar if shown else transformers_logging.disable_progress_bar)()
        progress_bar_states.clear()
        progress_bar_states.update(of_hub)

    def restore() -> None:
        if transformers_logging.get_verbosity() == logging.ERROR:
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


_SILENCE: dict[str, Callable[[], Callable[[], object]]] = {
    "notices": _silence_notices,
    "huggingface_hub": _silence_huggingface_hub,
    "transformers": _silence_transformers,
    "datasets": _silence_datasets,
}
