"""The command line: words and a TOML file become one checked settings object, with which one command runs.

A SaeLmError becomes one line and exit code 2. Flags are made of the fields of ``sae_lm.settings`` by argparse.

pydantic-settings 2.16 was tried in its place, up to the same help and errors. Out of the box it demands positionals
that stand in the file, calls the setting k ``-k``, reads the word null as None, splits a positional path at its commas
and shows defaults of None. It knows no overrides (train.k=64), no --hooks -1,0, no nearest key in an error. With all
that mended, making the flags takes 41 lines, with argparse alone 35; help takes .27 s, now .20 (medians of 15 pairs).
"""

import argparse
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, get_origin

from pydantic.fields import FieldInfo

from sae_lm.errors import SaeLmError, SaeLmWarning, SettingsError, Stopped
from sae_lm.fields import choice, describe, flag, is_positional
from sae_lm.runtime.distributed import exit_now, is_one_of_many
from sae_lm.runtime.memory import LESS_MEMORY, out_of_memory_sentence, raised_by_memory
from sae_lm.runtime.quota import heed_quota
from sae_lm.runtime.toml import parse_toml
from sae_lm.settings import VERBS, make_settings

CLAIM = "claim"
"""The one section that is no verb's (sae_lm.training.registered)."""
FALLS_BACK = {"estimate": ("cache",)}
"""Verb -> other sections in which its settings may stand."""
OVERRIDE = re.compile(r"([a-z_]+)\.([a-z_]+)=(.*)", re.DOTALL)
EXAMPLES = """\
examples:
  sae-lm demo                      everything below on the embedded model and text, without network
  sae-lm demo toy                  worlds whose truth is known, in a minute
  sae-lm cache --model EleutherAI/pythia-70m --text NeelNanda/pile-10k --hooks blocks.3.hook_out --tokens 10M --out acts/pythia
  sae-lm train --store acts/pythia --d-sae 16384 --k 32 --arms none,abs_cos:1,max_cos:0.25 --seeds 3 --out runs/pythia
  sae-lm compare runs/pythia --out reports/pythia
  sae-lm show runs/pythia/max_cos_0.25-seed0 --store acts/pythia --out latents.html
  sae-lm train --config configs/pythia_70m.toml train.k=64
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if wrong := re.search(r"argument VERB: invalid choice: '(.*?)' ", message):
            message = f"unknown verb {wrong[1]!r}; expected {choice(wrong[1], VERBS)}"
        raise SettingsError(f"{message}; see {self.prog} --help")


def make_parser() -> argparse.ArgumentParser:
    """One sub-command per verb, one flag per field; values stay text until the settings model reads them."""
    parser = _Parser(
        prog="sae-lm",
        description="Does this sparse autoencoder split and absorb features, and does a penalty on its decoder help?",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sae-lm {version('sae_lm')}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, model in VERBS.items():
        summary = (model.__doc__ or "").strip()
        sub = verbs.add_parser(
            verb,
            help=summary,
            description=summary,
            allow_abbrev=False,
            epilog=f"Any setting can also stand in a TOML file under {_sections_of(verb)} (--config FILE) or be given as {verb}.key=value.",
        )
        sub.add_argument("--config", metavar="FILE", help="TOML file with a section per verb")
        for key, field in model.model_fields.items():
            _add_setting(sub, key, field)
    return parser


def _add_setting(parser: argparse.ArgumentParser, key: str, field: FieldInfo) -> None:
    """One flag, switch or positional. None is required here, as the value may stand in the file."""
    default, said = field.default, describe(field).replace("%", "%%")
    if not field.is_required() and default is not None:
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        said += f" (default: {shown:.4g})" if isinstance(shown, float) else f" (default: {shown})"
    elif field.is_required():
        said += " (required)"
    how: dict[str, Any] = {"help": said, "default": argparse.SUPPRESS}
    if field.annotation is bool:
        how["action"] = argparse.BooleanOptionalAction
    else:
        how["metavar"] = key.upper()
    if is_positional(field):
        how["nargs"] = "*" if get_origin(field.annotation) is tuple else "?"
    parser.add_argument(key if is_positional(field) else flag(key), **how)


def parse(argv: list[str]) -> tuple[str, Any]:
    """argv -> (verb, settings). Flags win over overrides, overrides over the file. Raises SettingsError."""
    words, overrides = _without_overrides(argv)
    arguments, unknown = make_parser().parse_known_args(words)
    values = vars(arguments)
    verb, config = values.pop("verb"), values.pop("config")
    if left := _fill_positionals(verb, unknown, values):
        raise SettingsError(f"{verb}: {_about_unknown(verb, left[0])}; see sae-lm {verb} --help")
    section = _section(Path(config), verb) if config else {}
    return verb, make_settings(verb, {**section, **_settings_of(verb, overrides), **values})


def _sections_of(verb: str) -> str:
    return " or ".join(f"[{name}]" for name in (verb, *FALLS_BACK.get(verb, ())))


def _section(path: Path, verb: str) -> dict[str, Any]:
    """A verb's settings in a file. What would be cached is what is estimated, but for what [estimate] says."""
    sections = read_config(path)
    own = [sections[name] for name in (*FALLS_BACK.get(verb, ()), verb) if name in sections]
    if not own:
        warnings.warn(
            f"--config {path} has no section {_sections_of(verb)}, so nothing of it is used", SaeLmWarning, stacklevel=2
        )
    fields = VERBS[verb].model_fields
    return {key: value for section in own for key, value in section.items() if key in fields}


def _without_overrides(argv: list[str]) -> tuple[list[str], list[re.Match[str]]]:
    """The words for argparse, and the overrides. Words after ``--`` are positionals."""
    end = argv.index("--") if "--" in argv else len(argv)
    words: list[str] = []
    overrides: list[re.Match[str]] = []
    for word in argv[:end]:
        if words and re.match(r"-\d", word) and re.fullmatch(r"--[a-z-]+", words[-1]):
            words[-1] += f"={word}"  # --hooks -1,0: no flag begins with a digit
        elif match := OVERRIDE.fullmatch(word):
            overrides.append(match)
        else:
            words.append(word)
    return words + argv[end:], overrides


def _fill_positionals(verb: str, words: list[str], values: dict[str, Any]) -> list[str]:
    """Give words that argparse left over to the positionals that still take one; return those that none takes.

    argparse closes all positionals with the first group of words: of `show A --store S B` it leaves B.
    """
    end = words.index("--") if "--" in words else len(words)
    if flags := [word for word in words[:end] if word.startswith("-")]:
        return flags  # whose values may be among the words
    left = words[:end] + words[end + 1 :]
    for key, field in VERBS[verb].model_fields.items():
        if left and is_positional(field):
            if get_origin(field.annotation) is tuple:
                values[key], left = [*values.get(key, ()), *left], []
            elif key not in values:
                values[key] = left.pop(0)
    return left


def _about_unknown(verb: str, word: str) -> str:
    """What to say of a word that is no setting's."""
    if not word.startswith("-"):
        return f"unexpected argument {word!r}; lists are comma separated (--hooks a,b), overrides read {verb}.key=value"
    given, fields = word.split("=")[0].replace("_", "-"), VERBS[verb].model_fields
    if key := next((key for key, field in fields.items() if is_positional(field) and given == flag(key)), None):
        return f"{given} is no flag: give {key} by itself, as sae-lm {verb} {key.upper()}"
    known = {flag(key): None for key, field in fields.items() if not is_positional(field)}
    return f"unknown argument {word!r}; expected {choice(given, known)}"


def _settings_of(verb: str, overrides: list[re.Match[str]]) -> dict[str, str]:
    """Key -> value. Raises SettingsError for an override of another verb."""
    for match in overrides:
        if match[1] not in VERBS:
            raise SettingsError(f"{verb}: override {match[0]!r} names no verb; expected {choice(match[1], VERBS)}")
        if match[1] != verb:
            raise SettingsError(f"{verb}: override {match[0]!r} is for another verb; expected {verb}.key=value")
    return {match[2]: match[3] for match in overrides}


def read_config(path: Path) -> dict[str, dict[str, Any]]:
    """Read a TOML file whose sections are verbs; section names are checked, values are not yet."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise SettingsError(f"--config {path}: cannot be read ({problem.strerror}); give a TOML file") from None
    except UnicodeDecodeError as problem:
        raise SettingsError(f"--config {path}: is not valid TOML ({problem}); fix that line") from None
    sections = {name: section for name, section in parse_toml(text, f"--config {path}").items() if name != CLAIM}
    for name, section in sections.items():
        if name in VERBS and not isinstance(section, Mapping):
            raise SettingsError(
                f"--config {path}: {name} is a value, expected a section; write [{name}] and keys below it"
            )
        if name not in VERBS and not isinstance(section, Mapping):
            verb = next((verb for verb, model in VERBS.items() if name in model.model_fields), "train")
            raise SettingsError(
                f"--config {path}: {name} stands outside of any section; put it below its verb's line, such as [{verb}]"
            )
        if name not in VERBS:
            raise SettingsError(f"--config {path}: unknown section [{name}]; expected {choice(name, VERBS)}")
        for key in section:
            if key not in VERBS[name].model_fields:
                raise SettingsError(
                    f"--config {path}: unknown key {key!r} in [{name}]; expected {choice(key, VERBS[name].model_fields)}"
                )
    return sections


def run(verb: str, settings: Any) -> int:
    """Run one verb, whose heavy imports happen here. Returns the exit code."""
    return import_module(f"sae_lm.commands.{verb}").run(settings)


def main(argv: list[str] | None = None) -> int:
    """The exit code. One of torchrun's processes ends here, see `sae_lm.runtime.distributed.exit_now`."""
    heed_quota()  # before a command loads torch
    if isinstance(sys.stdout, TextIOWrapper):  # as stderr does it: not every character is in every encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    with notes_of_one_line():
        code = _main(argv)
    if is_one_of_many():
        exit_now(code)
    return code


@contextmanager
def notes_of_one_line() -> Iterator[None]:
    """Inside the block, a SaeLmWarning is printed as a note, once; other warnings as Python prints them."""
    show, said = warnings.showwarning, set[str]()

    def shown(message: Any, category: type[Warning], *where: Any, **keywords: Any) -> None:
        if not issubclass(category, SaeLmWarning):
            show(message, category, *where, **keywords)
        elif str(message) not in said:
            said.add(str(message))
            print(f"note: {message}", file=sys.stderr, flush=True)

    warnings.showwarning = shown
    try:
        yield
    finally:
        warnings.showwarning = show


def _main(argv: list[str] | None) -> int:
    verb = ""
    try:
        verb, settings = parse(sys.argv[1:] if argv is None else argv)
        code = run(verb, settings)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output has gone: `| head` has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell reports SIGPIPE, which Windows does not know
    except Stopped as stopped:
        print(f"sae-lm: {stopped}", file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        print("sae-lm: interrupted; run the same command again", file=sys.stderr)
        return 130
    except Exception as problem:
        if (sentence := _in_words(problem, verb)) is None:
            raise
        print(f"sae-lm: error: {sentence}", file=sys.stderr)
        return 2


def _in_words(problem: Exception, verb: str) -> str | None:
    """The sentence for a user; None for an error of ours. Memory comes first: what it led to may blame a file."""
    if (cause := raised_by_memory(problem)) is not None:
        advice = LESS_MEMORY.get(verb, "free some memory and run the same command again")
        return str(SaeLmError(out_of_memory_sentence(cause, f"in `sae-lm {verb}`", advice)))
    if isinstance(problem, SaeLmError):
        return str(problem)
    if isinstance(problem, OSError):
        where = f" ({problem.filename})" if problem.filename else ""
        return f"{problem.strerror or problem}{where}; check the path, its permissions and the disk"
    return None
