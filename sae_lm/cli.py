"""argv -> one settings model -> one verb; a SaeLmError becomes one line and exit code 2."""

import argparse
import re
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from sae_lm.errors import SaeLmError, SettingsError, Stopped
from sae_lm.runtime.distributed import exit_now, is_one_of_many
from sae_lm.settings import VERBS, choice, is_positional, make_settings, read_config

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
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_Parser)
    for verb, model in VERBS.items():
        summary = (model.__doc__ or "").strip()
        sub = verbs.add_parser(
            verb,
            help=summary,
            description=summary,
            allow_abbrev=False,
            epilog=f"Any setting can also stand in a TOML file under [{verb}] (--config FILE) or be given as {verb}.key=value.",
        )
        sub.add_argument("--config", metavar="FILE", help="TOML file with a section per verb")
        for key, field in model.model_fields.items():
            text = " ".join((field.description or "").split()).replace("%", "%%")
            if not field.is_required() and field.default is not None:
                default = field.default
                shown = ",".join(default) if isinstance(default, tuple) else default
                text += f" (default: {shown:.4g})" if isinstance(shown, float) else f" (default: {shown})"
            keywords: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
            if is_positional(model, key) and str(field.annotation).startswith("tuple"):
                sub.add_argument(key, nargs="*", metavar=key.upper(), **keywords)
            elif is_positional(model, key):
                sub.add_argument(key, nargs="?", metavar=key.upper(), **keywords)
            elif field.annotation is bool:
                sub.add_argument(f"--{key.replace('_', '-')}", action=argparse.BooleanOptionalAction, **keywords)
            else:
                sub.add_argument(f"--{key.replace('_', '-')}", metavar=key.upper(), **keywords)
    return parser


def parse(argv: list[str]) -> tuple[str, Any]:
    """argv -> (verb, settings). Raises SettingsError."""
    overrides = [match for match in map(OVERRIDE.fullmatch, argv) if match]
    plain: list[str] = []
    for argument in argv:
        if re.match(r"-\d", argument) and plain and re.fullmatch(r"--[a-z-]+", plain[-1]):
            plain[-1] += f"={argument}"  # --hooks -1,0: no flag begins with a digit
        elif not OVERRIDE.fullmatch(argument):
            plain.append(argument)
    arguments, unknown = make_parser().parse_known_args(plain)
    values = vars(arguments)
    verb = values.pop("verb")
    config = values.pop("config", None)
    for flag in unknown:
        if not flag.startswith("-"):
            raise SettingsError(
                f"{verb}: unexpected argument {flag!r}; lists are comma separated (--hooks a,b), "
                f"overrides read {verb}.key=value; see sae-lm {verb} --help"
            )
        key = flag.split("=")[0].removeprefix("--").replace("-", "_")
        flags = {f"--{name.replace('_', '-')}": None for name in VERBS[verb].model_fields}
        known = choice(f"--{key.replace('_', '-')}", flags)
        raise SettingsError(f"{verb}: unknown argument {flag!r}; expected {known}; see sae-lm {verb} --help")
    merged = dict(read_config(Path(config)).get(verb, {})) if config else {}
    for match in overrides:
        section, key, value = match.groups()
        if section not in VERBS:
            raise SettingsError(f"{verb}: override {match.group()!r} names no verb; expected {choice(section, VERBS)}")
        if section != verb:
            raise SettingsError(f"{verb}: override {match.group()!r} is for another verb; expected {verb}.key=value")
        merged[key] = value
    return verb, make_settings(verb, {**merged, **values})


def run(verb: str, settings: Any) -> int:
    """Run one verb, whose heavy imports happen here. Returns the exit code."""
    return import_module(f"sae_lm.commands.{verb}").run(settings)


def main(argv: list[str] | None = None) -> int:
    """The exit code. One of torchrun's processes ends here, see `sae_lm.runtime.distributed.leave`."""
    code = _main(argv)
    if is_one_of_many():
        exit_now(code)
    return code


def _main(argv: list[str] | None) -> int:
    try:
        return run(*parse(sys.argv[1:] if argv is None else argv))
    except Stopped as stopped:
        print(f"sae-lm: {stopped}", file=sys.stderr)
        return 128 + stopped.signal_number
    except SaeLmError as problem:
        print(f"sae-lm: error: {problem}", file=sys.stderr)
        return 2
    except OSError as problem:
        where = f" ({problem.filename})" if problem.filename else ""
        print(
            f"sae-lm: error: {problem.strerror or problem}{where}; check the path, its permissions and the disk",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("sae-lm: interrupted; run the same command again", file=sys.stderr)
        return 130
