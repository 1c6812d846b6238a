"""Find the commit that a hub id stands for now, or say in one sentence within seconds why there is none.

The libraries that load from the hub retry a dead connection for 20 seconds and more and then report a
chain of errors. So every hub id is asked for here first: one request, a deadline, one sentence.
"""

import errno
import re
import threading
from pathlib import Path
from typing import NamedTuple

from sae_lm.errors import HubError
from sae_lm.hub.errors import Kind, called, endpoint, is_missing, missing, reason_of, status_of
from sae_lm.hub.quiet import quiet, without_notices

TIMEOUT = 5.0
"""Seconds for each step of the request, as the HTTP client counts them."""
DEADLINE = 5.5
"""Seconds for the request as a whole."""


class Pinned(NamedTuple):
    repo_id: str
    revision: str
    """Full commit hash."""
    local: Path | None
    """The snapshot in the local hub cache, to load from where the hub is out of reach; else None."""


def pin(repo_id: str, kind: Kind, revision: str | None = None) -> Pinned:
    """The commit that ``revision`` (a branch, a tag, a commit; default the main branch) stands for now.

    A token from the environment or from ``hf auth login`` is sent along. Where the hub is out of reach or
    offline mode is on, a copy in the local hub cache serves: the commit is then the one that was cached.
    """
    from huggingface_hub import errors
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except errors.HFValidationError:
        raise HubError(
            f"{repo_id!r} is neither an existing folder nor a hub id, which reads NAME or OWNER/NAME; "
            "check the path or the spelling"
        ) from None
    with quiet():
        return _pinned(repo_id, kind, revision)


def _pinned(repo_id: str, kind: Kind, revision: str | None) -> Pinned:
    from huggingface_hub import errors

    repository = called(kind, repo_id)
    try:
        return Pinned(repo_id, _commit(repo_id, kind, revision), None)
    except errors.RevisionNotFoundError:
        raise HubError(
            f"{endpoint()} has the {repository}, but no revision {revision!r} of it; "
            "give a branch, a tag or a commit that exists there"
        ) from None
    except errors.GatedRepoError:
        raise HubError(
            f"the {repository} at {endpoint()} is gated and this account has no access; ask for access on its "
            "page, then run `hf auth login` or set HF_TOKEN, or give a local folder"
        ) from None
    # What a dead connection raises depends on the version: OSError, or an error of requests, httpx or httpx2.
    except Exception as error:
        if is_missing(error):
            raise HubError(missing(repository)) from None
        if (status := status_of(error)) in (401, 403):
            raise HubError(
                f"{endpoint()} refuses the {repository} to this account (status {status}); "
                "renew the token with `hf auth login` or HF_TOKEN, or give a local folder"
            ) from None
        snapshot = _cached(repo_id, kind, revision)
        if snapshot is None:
            wanted = repository if revision is None else f"revision {revision!r} of the {repository}"
            raise HubError(
                f"cannot reach {endpoint()} ({reason_of(error)}), and the local hub cache does not hold the "
                f"{wanted}; give a local folder or `embedded`, or connect"
            ) from None
        return Pinned(repo_id, snapshot.name, snapshot)


def _commit(repo_id: str, kind: Kind, revision: str | None) -> str:
    """The hub's answer. Name resolution obeys no timeout, hence a thread that is left behind when late."""
    from huggingface_hub import HfApi

    answer: list[str | Exception] = []

    def ask() -> None:
        try:
            api = HfApi()
            about = api.dataset_info if kind == "dataset" else api.model_info
            with without_notices():  # this thread may outlive the caller's block
                info = about(repo_id, revision=revision, timeout=TIMEOUT)
                if info.gated:  # the description of a gated repository is public, its files are not
                    api.auth_check(repo_id, repo_type=kind)
            if not isinstance(info.sha, str) or not re.fullmatch("[0-9a-f]{40}", info.sha):
                raise OSError(errno.EPROTO, "the answer names no commit")
            answer.append(info.sha)
        except Exception as error:
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    if not answer:
        raise OSError(errno.ETIMEDOUT, f"no answer within {DEADLINE:g} s")
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def _cached(repo_id: str, kind: Kind, revision: str | None) -> Path | None:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.file_download import repo_folder_name

    try:
        snapshot = Path(snapshot_download(repo_id, repo_type=kind, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        # A model loaded without, say, its README counts as incomplete there; the files in use are present.
        partial: str | None = getattr(error, "snapshot_path", None)
        snapshots = [Path(partial)] if partial else []
        if not snapshots and revision is None:  # what was loaded by commit is not filed under a branch
            folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo_id, repo_type=kind), "snapshots")
            snapshots = sorted(folder.glob("*"), key=lambda path: path.stat().st_mtime)
        if not snapshots:
            return None
        snapshot = snapshots[-1]
    # Streaming a data set leaves its card in the cache, and nothing to read.
    files = {path.name for path in snapshot.rglob("*") if path.is_file()}
    return snapshot if files - {"README.md", ".gitattributes"} else None
