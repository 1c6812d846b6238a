"""Push an SAE into a folder of a model repository of the hub, with a model card that says what it is.

The folder holds what SAELens reads, ``cfg.json`` and ``sae_weights.safetensors``. SAELens reads no SAE at the root of
a repository, hence a folder always; so a repository may hold many SAEs. The card is made with huggingface_hub's
ModelCard. Where one is there, its text and its other metadata stay: each SAE has a section of its own between two
marks, and only that is written anew.
"""

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sae_lm.errors import HubError, SaeError
from sae_lm.fields import with_home
from sae_lm.hub.errors import called
from sae_lm.hub.repository import Branch, download_from_model
from sae_lm.runtime.files import read_json, sha256
from sae_lm.sae.folder import CONFIG, WEIGHTS
from sae_lm.sae.formats.saelens import changed_since_saved, save, written_anew
from sae_lm.sae.load import load_as_recorded
from sae_lm.sae.model import SAE

CARD = "README.md"
TAGS = ("saelens", "sparse-autoencoder", "mechanistic-interpretability", "sae_lm")
TASK = "feature-extraction"
NAMES = {"fvu": "fraction of variance unexplained", "l0": "active latents per token", "dead": "dead latents"}
"""What a run's log says of an SAE, and its name on the card."""
OLD_IDS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
"""Models of the hub whose id has no owner."""
TEMPLATE = """\
---
{{ card_data }}
---

# Sparse autoencoders

Each folder holds one sparse autoencoder in the format of SAELens.
"""


def push_sae(path: str | Path, place: str, *, private: bool = True, revision: str | None = None) -> str:
    """Upload an SAE of any known format to ``OWNER/NAME:FOLDER``. Returns its address, with the commit.

    private: whether a repository made here is private; into a public one only ``private=False`` pushes.
    revision: the branch to push to, made if missing; else the main one.

    The same SAE is not sent twice. Raises SaeError (no SAE, or SAELens cannot express it) and HubError (not allowed,
    out of reach, another SAE is in that folder, a card that cannot be read); nothing is then changed.
    """
    from huggingface_hub import CommitOperationAdd

    repo_id, folder = _place(place)
    path = with_home(path)
    sae = load_as_recorded(path, "cpu")
    config = Path(path, CONFIG)
    said = read_json(config, SaeError, "an SAE directory") if config.is_file() else {}
    if changed_since_saved(said) and not written_anew(said):
        raise SaeError(
            f"{config} was changed or damaged since it was saved: its content does not match its checksum; "
            "restore it, or load and save the SAE anew if the change is meant"
        )
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch, "sae")
        save(sae, written)
        branch = Branch(f"pushing {path}", repo_id, revision, private, "model")
        there = branch.tree()
        files = {f"{folder}/{name}": (written / name).read_bytes() for name in (CONFIG, WEIGHTS)}
        _check_free(branch, there, folder, sha256(written / WEIGHTS), files[f"{folder}/{CONFIG}"])
        before = None
        if CARD in there:
            before = download_from_model(repo_id, branch.head, CARD).read_bytes().decode("utf-8-sig", "replace")
        files[CARD] = card(sae, repo_id, folder, _last_logged(Path(path)), before).encode()
        changed = {name: content for name, content in files.items() if not _is_there(branch, there, name, content)}
        operations = [CommitOperationAdd(name, content) for name, content in changed.items()]
        if operations:
            branch.send(operations)
            _check_kept(branch, (one.path_in_repo for one in operations if getattr(one, "_should_ignore", False)))
            branch.commit(f"Add SAE {folder}" if f"{folder}/{WEIGHTS}" in changed else f"Renew {folder}", operations)
            kept = branch.tree()
            _check_kept(branch, (name for name in changed if name not in kept))
    return f"{repo_id}@{branch.head}:{folder}"


def _last_logged(path: Path) -> dict[str, Any]:
    """The last line of the log that training has left beside an SAE's directory; empty where there is none."""
    log = path.absolute().with_name(path.absolute().name + ".metrics.jsonl")
    try:
        line = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return {}
    return line if isinstance(line, dict) else {}


def _place(place: str) -> tuple[str, str]:
    repo_id, _, folder = place.partition(":")
    folder = folder.strip("/")
    if not re.fullmatch(r"[^/\s@:]+/[^/\s@:]+", repo_id):
        raise HubError(f"{place!r} is no place for an SAE, which reads OWNER/NAME:FOLDER; name one to push to")
    if not folder:
        raise HubError(
            f"{place!r} names no folder, and SAELens reads no SAE at the root of a repository; give {repo_id}:FOLDER"
        )
    if any(part in ("", ".", "..") or not re.fullmatch(r"[\w.@=+-]+", part) for part in folder.split("/")):
        raise HubError(
            f"folder {folder!r} is not one of a repository; expected letters, digits and . _ - + = @ between slashes"
        )
    return repo_id, folder


def _check_kept(branch: Branch, left_out: Iterable[str]) -> None:
    """Raises HubError for files that the hub says it leaves out of a commit: an SAE without its weights is none."""
    for name in left_out:
        raise HubError(
            f"the {called('model', branch.repo_id)} does not keep {name}; see whether a .gitignore there names it, "
            "and push again"
        )


def _check_free(branch: Branch, there: Mapping[str, Any], folder: str, digest: str, config: bytes) -> None:
    """Raises HubError where the folder holds another SAE, or anything else under the names that are written."""
    weights = there.get(f"{folder}/{WEIGHTS}")
    if folder in there or (weights is not None and (weights.lfs is None or weights.lfs.sha256 != digest)):
        raise HubError(
            f"the {called('model', branch.repo_id)} holds something else at {folder}; push to another folder, "
            "or delete that one"
        )
    ours = _is_there(branch, there, f"{folder}/{CONFIG}", config)  # of a push that did not get its weights there
    if weights is None and f"{folder}/{CONFIG}" in there and not ours:
        raise HubError(
            f"the {called('model', branch.repo_id)} has a {folder}/{CONFIG} of something else; push to another folder"
        )


def _is_there(branch: Branch, there: Mapping[str, Any], name: str, content: bytes) -> bool:
    if name not in there:
        return False
    if there[name].lfs is not None:  # `_check_free` has compared it
        return True
    return download_from_model(branch.repo_id, branch.head, name).read_bytes() == content


# --- the card


def card(
    sae: SAE, repo_id: str, folder: str, logged: Mapping[str, Any] | None = None, before: str | None = None
) -> str:
    """The model card of a repository with this SAE in ``folder``.

    logged: the last line of the SAE's training log. before: the card that is there; all of it but this SAE's section
    and its results is kept. Raises HubError where its metadata cannot be read.
    """
    import yaml
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    metadata = sae.config.metadata
    if before is None or not before.strip():
        made = ModelCard.from_template(ModelCardData(library_name="saelens"), template_str=TEMPLATE)
    else:
        try:
            made = ModelCard(before if before.startswith("---") else f"---\n{{}}\n---\n{before}")
        except (ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as problem:
            reason = " ".join(str(problem).split())[:200]
            raise HubError(
                f"the {called('model', repo_id)} has a {CARD} whose metadata cannot be read ({reason}); mend it there"
            ) from None
    data: Any = made.data  # a ModelCardData
    data.library_name = data.library_name or "saelens"
    data.base_model = _with_model(data.base_model, _base_model(metadata))
    data.tags = list(dict.fromkeys([*(data.tags or []), *TAGS]))
    text = str(metadata.get("dataset_path") or "unknown")
    kept = [r for r in data.eval_results or [] if (r.metric_args or {}).get("sae") != folder]
    results = [
        EvalResult(
            TASK, text, text, key, value, metric_name=NAMES[key], metric_args={"sae": folder, "rows": "training"}
        )
        for key, value in (logged or {}).items()
        if key in NAMES and isinstance(value, (int, float))
    ]
    if results:
        data.eval_results = [*kept, *results]
        data.model_name = data.model_name or repo_id.rpartition("/")[2]
    made.text = _with_section(made.text, folder, _section(sae, repo_id, folder, logged or {}))
    return str(made)


def _base_model(metadata: Mapping[str, Any]) -> str | None:
    """The hub's id of the language model; None for one of this disk, and for names that only a library knows."""
    name = str(metadata.get("model_name") or "")
    if "model_revision" in metadata and metadata["model_revision"] is None:
        return None
    return name if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) or name in OLD_IDS else None


def _with_model(before: str | list[str] | None, model: str | None) -> str | list[str] | None:
    named = [before] if isinstance(before, str) else list(before or [])
    if model is None or model in named:
        return before
    return [*named, model] if named else model


def _section(sae: SAE, repo_id: str, folder: str, logged: Mapping[str, Any]) -> str:
    c, metadata = sae.config, sae.config.metadata
    facts = {
        "architecture": c.architecture + (f", k = {c.k}" if c.k else ""),
        "size": f"{c.d_in:,} to {c.d_sae:,} latents",
        "language model": f"{metadata.get('model_name') or 'unknown'} {metadata.get('model_revision') or ''}",
        "hook": metadata.get("hook_name") or "unknown",
        "text": metadata.get("dataset_path") or "unknown",
        "arm": f"{metadata['arm']}, seed {metadata.get('seed')}" if "arm" in metadata else "",
        **{
            f"{NAMES[key]}, in training": f"{logged[key]:.4g}"
            for key in NAMES
            if isinstance(logged.get(key), (int, float))
        },
    }
    rows = [f"| {key} | `{_plain(value)}` |" for key, value in facts.items() if value]
    table = "\n".join(rows)
    return f"""## {folder}

| | |
|---|---|
{table}

```python
from sae_lens import SAE  # or: import sae_lm; sae = sae_lm.load("{repo_id}:{folder}")

sae = SAE.from_pretrained("{repo_id}", "{folder}")
```
"""


def _plain(value: object) -> str:
    """On one line, and nothing that ends the code or the cell of a table it stands in."""
    return " ".join(str(value).replace("`", "").replace("|", "/").split())


def _with_section(text: str, folder: str, section: str) -> str:
    """The text with this SAE's section in its place, or at the end."""
    begin, end = f"<!-- sae_lm: {folder} -->", f"<!-- end of {folder} -->"
    marked = f"{begin}\n{section}{end}"
    if begin in text and end in text.partition(begin)[2]:
        ahead, _, rest = text.partition(begin)
        return ahead + marked + rest.partition(end)[2]
    return f"{text.rstrip()}\n\n{marked}\n"
