"""Fetch files from repositories of the hub, and commit to them; what goes wrong is one sentence.

Tokens are huggingface_hub's business: none is read, kept or named here, and none of its messages is passed on,
as some quote a malformed token or an address with its password.
"""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lm.errors import HubError, StoreError
from sae_lm.hub.errors import WAIT, Kind, answering_within, called, endpoint, one_sentence
from sae_lm.hub.quiet import quiet, without_notices

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.hf_api import RepoFile

SCHEME = "hf://"
COURTESY = 10.0
"""Seconds for an answer that only makes an error clearer."""


def address_of(repo_id: str, revision: str | None = None) -> str:
    return f"{SCHEME}datasets/{repo_id}" + (f"@{revision}" if revision else "")


def download(repo_id: str, commit: str, name: str, again: bool = False, folder: Path | None = None) -> Path:
    """A file of a data set, in the local hub cache or in ``folder``; fetched unless it is there, or ``again``.

    Raises StoreError (no such file), HubError.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    options = {"repo_type": "dataset", "revision": commit, "force_download": again, "local_dir": folder}
    address = address_of(repo_id, commit)
    with quiet(), one_sentence(f"fetching {name} of {address}", repo_id):
        try:
            return Path(hf_hub_download(repo_id, name, **options))
        except LocalEntryNotFoundError:  # a kind of the next one, and means that the hub is out of reach
            raise
        except EntryNotFoundError:
            raise StoreError(f"{address} has no {name}: it holds no whole store, or a push has not ended") from None


def download_from_model(repo_id: str, commit: str, name: str) -> Path:
    """A file of a model repository, in the local hub cache. Raises HubError."""
    from huggingface_hub import hf_hub_download

    with without_notices(), one_sentence(f"fetching {name} of the model {repo_id!r}", repo_id, "model"):
        return Path(hf_hub_download(repo_id, name, revision=commit))


def list_files(repo_id: str, commit: str) -> list[str]:
    """The paths of all files of a model repository; none is fetched. Raises HubError."""
    from huggingface_hub import HfApi

    with without_notices(), one_sentence(f"listing the model {repo_id!r}", repo_id, "model"):
        paths = HfApi().list_repo_files(repo_id, revision=commit)
    _check_names(paths, f"listing the model {repo_id!r}")
    return paths


def _check_names(paths: Iterable[Any], doing: str) -> None:
    """Raise HubError where a list of files holds something else: huggingface_hub passes on what it gets."""
    if not all(isinstance(path, str) for path in paths):
        raise HubError(
            f"{doing} failed: {endpoint()} answers with something else than names of files; "
            "run the same again, or see whether HF_ENDPOINT names a hub"
        )


def models_of(repo_id: str) -> list[str]:
    """The ids of some models of a repository's owner, to name the one that was meant; none where they cannot be had."""
    from huggingface_hub import HfApi

    owner, slash, _ = repo_id.partition("/")
    try:
        with quiet(), answering_within(COURTESY):
            found = [model.id for model in HfApi().list_models(author=owner, limit=500)] if slash else []
            return [name for name in found if isinstance(name, str)]
    except Exception:  # a courtesy: whatever goes wrong, the error that led here is the one to tell
        return []


class Branch:
    """A branch of a repository, of a data set unless ``kind`` says otherwise, both made if missing, and the commit it stands at."""

    def __init__(self, doing: str, repo_id: str, revision: str | None, private: bool, kind: Kind = "dataset") -> None:
        """doing: what failed, if it does. private: of a repository made here; one that is public is then refused."""
        from huggingface_hub import HfApi

        self.api, self.doing, self.repo_id, self.revision = HfApi(), doing, repo_id, revision
        self.kind: Kind = kind
        with quiet(), one_sentence(doing, repo_id, kind):
            self.api.create_repo(repo_id, repo_type=self.kind, private=private, exist_ok=True)
            if revision is not None:  # a new one begins where the repository did, not with what main holds now
                first = self.api.list_repo_commits(repo_id, repo_type=self.kind)[-1].commit_id
                self.api.create_branch(repo_id, repo_type=self.kind, branch=revision, revision=first, exist_ok=True)
            about = self.api.repo_info(repo_id, repo_type=kind, revision=revision, timeout=WAIT)
        self.head = str(about.sha)
        if private and about.private is False:
            raise HubError(
                f"{doing} failed: the {called(kind, repo_id)} is public; allow that (--no-private), or name another one"
            )

    def tree(self) -> dict[str, "RepoFile"]:
        """Path -> size and checksum of each file."""
        from huggingface_hub.hf_api import RepoFile

        with quiet(), one_sentence(self.doing, self.repo_id, self.kind):
            entries = self.api.list_repo_tree(self.repo_id, repo_type=self.kind, revision=self.head, recursive=True)
            found = [entry for entry in entries if isinstance(entry, RepoFile)]
        _check_names([entry.path for entry in found], self.doing)
        return {entry.path: entry for entry in found}

    def send(self, operations: list["CommitOperationAdd"]) -> None:
        """Upload what goes to the hub's storage for large files and is not there; the rest goes with the commit."""
        from huggingface_hub import constants

        xet = find_spec("hf_xet") is not None and not constants.HF_HUB_DISABLE_XET  # never asks whether a hub has it
        way = " through Xet (which HF_HUB_DISABLE_XET=1 turns off)" if xet else ""
        with quiet(), one_sentence(self.doing + way, self.repo_id, self.kind):
            self.api.preupload_lfs_files(
                self.repo_id, operations, repo_type=self.kind, revision=self.revision, free_memory=False
            )

    def commit(self, title: str, operations: list["CommitOperationAdd"]) -> None:
        with quiet(), one_sentence(self.doing, self.repo_id, self.kind):
            made = self.api.create_commit(
                self.repo_id,
                operations,
                commit_message=title,
                repo_type=self.kind,
                revision=self.revision,
                parent_commit=self.head,  # refused where someone else has committed meanwhile
            )
        self.head = made.oid
