"""The stand-in for the hub in a process of its own, and the environment with which another one asks it."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from hub_stand_in import HubStandIn


def use_it(endpoint: str, token: str, home: Path) -> dict[str, str]:
    """Environment variables with which huggingface_hub, imported after that, asks this hub; it waits for a busy machine."""
    return {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # which go to a fixed address elsewhere
        "HF_HUB_DOWNLOAD_TIMEOUT": "30",
        "HF_HUB_ETAG_TIMEOUT": "30",
        "NO_PROXY": "127.0.0.1",
    }


def wait_until_written() -> None:
    """Until the hub of `serving` has done what was asked of it, also by processes that were killed since."""
    urlopen(f"{os.environ['HF_ENDPOINT']}/written", timeout=120).close()


@contextmanager
def serving(root: Path, home: Path, accounts: Mapping[str, str]) -> Iterator[str]:
    """A hub in a process of its own, and this process set to use it, as the first of its ``accounts``; its address.

    For what must run no thread itself. To be entered before huggingface_hub is imported, which then reads where it is.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        quiet = os.open(os.devnull, os.O_WRONLY)  # of connections that are killed
        os.dup2(quiet, 2)
        hub = HubStandIn(root, accounts=accounts)
        os.write(writing, hub.endpoint.encode())
        os.close(writing)
        hub.server.serve_forever(poll_interval=0.05)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        endpoint = pipe.read()
    os.environ.update(use_it(endpoint, next(iter(accounts)), home))
    try:
        yield endpoint
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
