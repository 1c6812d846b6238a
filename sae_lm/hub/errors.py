"""What the Hugging Face hub and its library raise, as one sentence that says what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal
from urllib.parse import urlsplit

from sae_lm.errors import HubError, SaeLmError
from sae_lm.runtime.files import DISKS, disk_problem

Kind = Literal["model", "dataset"]
LOG_IN = "run `hf auth login` or set HF_TOKEN"


def endpoint() -> str:
    """The hub's address, without the password that a mirror's may hold."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def status_of(error: Exception) -> int | None:
    """The HTTP status that the hub answered with, if it answered."""
    return getattr(getattr(error, "response", None), "status_code", None)


def reason_of(error: Exception) -> str:
    """Why there was no answer, in a few words. Never ``str(error)``: a malformed token is quoted there."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on: HF_HUB_OFFLINE"
    if status := status_of(error):
        return f"status {status}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


def called(kind: Kind, repo_id: str) -> str:
    """What an error calls a repository: ``data set 'OWNER/NAME'``."""
    return f"{'data set' if kind == 'dataset' else 'model'} {repo_id!r}"


def is_missing(error: Exception) -> bool:
    """Whether the hub has answered that there is no such repository, or none that this account may see."""
    from huggingface_hub.errors import RepositoryNotFoundError

    return status_of(error) == 404 or isinstance(error, RepositoryNotFoundError)


def missing(repository: str) -> str:
    """The sentence for `is_missing`; repository: what it is `called`."""
    return f"{endpoint()} has no {repository}, or it is private; check the spelling, or {LOG_IN} if it is private"


WAIT = 300.0
"""Seconds for which a hub may be silent: it may take long over a large commit."""


@contextmanager
def answering_within(seconds: float) -> Iterator[None]:
    """Inside, a hub that is silent for so long is an error. huggingface_hub's client (1.0 and later) would wait for ever."""
    from huggingface_hub.utils import get_session

    def limit(request: Any) -> None:
        given = request.extensions.get("timeout") or dict.fromkeys(("connect", "read", "write", "pool"))
        request.extensions["timeout"] = {name: seconds if time is None else time for name, time in given.items()}

    hooks = getattr(get_session(), "event_hooks", {}).get("request")  # an older library's session has none
    if hooks is None:
        yield
        return
    hooks.append(limit)
    try:
        yield
    finally:
        with suppress(ValueError):
            hooks.remove(limit)


@contextmanager
def one_sentence(doing: str, repo_id: str, kind: Kind = "dataset") -> Iterator[None]:
    """Whatever huggingface_hub raises inside the block becomes a HubError that says what to do.

    doing: what failed, if it does; the sentence begins with it.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        with answering_within(WAIT):
            yield
    except SaeLmError:
        raise
    except Exception as error:  # which ones a dead connection raises depends on the version
        chain: list[Exception] = []
        cause: BaseException | None = error
        while isinstance(cause, Exception):
            chain.append(cause)
            cause = cause.__cause__ or cause.__context__
        status = next(filter(None, map(status_of, chain)), None)
        hub, repository = endpoint(), called(kind, repo_id)
        if DISKS[errno.ENOSPC] in map(disk_problem, chain):  # what is fetched is kept on a disk of this machine
            room = "free some room where it is kept (HF_HOME says where)"
            sentence = f"{DISKS[errno.ENOSPC]}; {room} and run the same again, what has arrived is kept"
        elif status == 404 or is_missing(error):
            sentence = missing(repository)
        elif status == 401:
            sentence = f"{hub} asks for a valid token; {LOG_IN}"
        elif status == 403:
            sentence = f"{hub} does not let this account at the {repository}; use a token that may, or a repository of your own"
        elif status in (409, 412):
            sentence = f"someone else has changed the {repository} meanwhile; run the same again"
        elif status is not None and 400 <= status < 500 and status not in (408, 429):
            sentence = f"{hub} refuses it (status {status}); see the limits of your account there"
        else:
            telling = (
                e for e in chain if isinstance(e, OfflineModeIsEnabled) or status_of(e) or getattr(e, "strerror", 0)
            )
            reason = reason_of(next(telling, chain[-1]))
            sentence = (
                f"no answer from {hub} ({reason}); what has arrived is kept, run the same again when it can be reached"
            )
        raise HubError(f"{doing} failed: {sentence}") from None
