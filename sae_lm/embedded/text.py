"""The embedded text: the Python documentation that ships with every CPython.

Two sources, read at run time, so that no text is committed:

* ``topic:NAME``: the language reference topics of ``pydoc_data.topics``;
* ``module:NAME``: the docstrings of one standard-library module in source order (read with
  ``ast``, nothing is imported), or of a module compiled into the interpreter.

A docstring that was already seen in an earlier document is dropped, so no sentence stands on both
sides of the split. The split is by document: ``sha256(name)[0] % 10 == 0`` is held out, which
depends on the name alone and so is the same on every Python version. Documents come in one fixed
order: the training split sorted by the hash of the name, then the held-out split likewise. Counts
differ between Python versions; report them, do not assume them.
"""

import ast
import gc
import hashlib
import inspect
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datasets import Dataset

HELD_OUT_ONE_IN = 10
SKIPPED_PACKAGES = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "__pycache__"}
"""Test suites and an editor: code with hardly any prose."""


class Document(NamedTuple):
    name: str
    """``topic:...`` or ``module:...``; unique."""
    text: str
    held_out: bool


def is_held_out(name: str) -> bool:
    return _digest(name)[0] % HELD_OUT_ONE_IN == 0


@cache
def embedded_documents() -> tuple[Document, ...]:
    """All documents in the fixed order described at the head of this module."""
    documents: list[Document] = []
    seen: set[bytes] = set()
    with _no_collection():
        sources = [*_topics(), *_library_modules(), *_compiled_modules()]
    for name, parts in sorted(sources, key=lambda source: (is_held_out(source[0]), _digest(source[0]))):
        fresh: list[str] = []
        for heading, body in parts:
            key = _digest(" ".join(body.split()))
            if key not in seen:
                seen.add(key)
                fresh.append(f"{heading}\n{body.strip()}" if heading else body.strip())
        if fresh:
            documents.append(Document(name, "\n\n".join(fresh) + "\n", is_held_out(name)))
    return tuple(documents)


def embedded_split(split: str = "all") -> list[Document]:
    """split: ``train``, ``held_out`` or ``all`` (train first, then held out)."""
    if split not in ("train", "held_out", "all"):
        raise ValueError(f"split must be 'train', 'held_out' or 'all', got {split!r}")
    return [d for d in embedded_documents() if split == "all" or d.held_out == (split == "held_out")]


def embedded_dataset(split: str = "all") -> "Dataset":
    """The documents of a split as a data set with columns ``name``, ``text``, ``held_out``."""
    from datasets import Dataset  # a second's import

    chosen = embedded_split(split)
    return Dataset.from_dict({field: [getattr(d, field) for d in chosen] for field in Document._fields})


@contextmanager
def _no_collection() -> Iterator[None]:
    """Syntax trees have no circles, and millions of nodes, among which looking for circles takes a third as long as parsing."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


Parts = list[tuple[str, str]]
"""(heading, docstring) in source order."""


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _topics() -> Iterator[tuple[str, Parts]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave pydoc_data out; the docstrings remain
        return
    for name, body in topics.items():
        yield f"topic:{name}", [("", body)]


def _library_modules() -> Iterator[tuple[str, Parts]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if relative.parts[0].partition(".")[0] not in sys.stdlib_module_names:
            continue
        if SKIPPED_PACKAGES.intersection(relative.parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in old library code
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):  # templates, other encodings, unreadable files
            continue
        name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        parts = list(_docstrings(tree, name))
        if parts:
            yield f"module:{name}", parts


def _docstrings(node: ast.AST, heading: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        body = ast.get_docstring(node)
        if body:
            yield heading, body
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            bases = ", ".join(map(ast.unparse, child.bases))
            yield from _docstrings(child, f"class {child.name}({bases})" if bases else f"class {child.name}")
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstrings(child, f"{child.name}({ast.unparse(child.args)})")


LEFT_BY_THE_PROMPT = {"_", "last_exc", "last_traceback", "last_type", "last_value"}
"""Names that the interactive prompt puts into sys and builtins: its last error, its last result."""


def _compiled_modules() -> Iterator[tuple[str, Parts]]:
    """Modules inside the interpreter itself: importing them runs no library code."""
    for name in sorted(sys.builtin_module_names):
        module = __import__(name)
        parts: Parts = [(name, inspect.cleandoc(module.__doc__))] if module.__doc__ else []
        for attribute, value in sorted(vars(module).items()):
            if attribute not in LEFT_BY_THE_PROMPT:
                parts += _runtime_docstrings(attribute, value)
        if parts:
            yield f"module:{name}", parts


def _runtime_docstrings(name: str, value: object) -> Parts:
    parts: Parts = []
    if (inspect.isclass(value) or inspect.isbuiltin(value)) and isinstance(value.__doc__, str):
        parts.append((name, inspect.cleandoc(value.__doc__)))
    if inspect.isclass(value):
        for attribute, member in sorted(vars(value).items()):
            if inspect.isroutine(member) and isinstance(member.__doc__, str):
                parts.append((f"{name}.{attribute}", inspect.cleandoc(member.__doc__)))
    return parts
