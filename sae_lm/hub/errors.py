"""What the Hugging Face hub and its library raise, told in one sentence that says what to do."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sae_lm.errors import HubError, SaeLmError

if TYPE_CHECKING:
    pass


def endpoint() -> str:
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # a mirror's address may hold a password


def status_of(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def reason_of(error: Exception) -> str:
    """Never ``str(error)``: a malformed token is quoted there."""
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


@contextmanager
def one_sentence(doing: str, repo_id: str) -> Iterator[None]:
    """Whatever huggingface_hub raises becomes a HubError that says what to do."""
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    try:
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
        hub, what = endpoint(), f"data set {repo_id!r}"
        if status == 404 or isinstance(error, RepositoryNotFoundError):
            said = f"{hub} has no {what}, or it is private; check the name, run `hf auth login` or set HF_TOKEN"
        elif status == 401:
            said = f"{hub} asks for a valid token; run `hf auth login` or set HF_TOKEN"
        elif status == 403:
            said = f"{hub} does not let this account at the {what}; use a token that may, or a repository of your own"
        elif status in (409, 412):
            said = f"someone else has changed the {what} meanwhile; run the same again"
        elif status is not None and 400 <= status < 500 and status not in (408, 429):
            said = f"{hub} refuses it (status {status}); see the limits of your account there"
        else:
            told = (
                e for e in chain if isinstance(e, OfflineModeIsEnabled) or status_of(e) or getattr(e, "strerror", 0)
            )
            reason = reason_of(next(told, chain[-1]))
            said = (
                f"no answer from {hub} ({reason}); what has arrived is kept, run the same again when it can be reached"
            )
        raise HubError(f"{doing} failed: {said}") from None


def quiet() -> None:
    """No progress bars of huggingface_hub, and no notices of its retries, which name the hub with its password."""
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    logger = logging.getLogger("huggingface_hub")
    if logger.level == logging.WARNING:  # else somebody has asked for another level
        logger.setLevel(logging.ERROR)
