"""Token labels: what a token is, whatever stands around it; and a user's own labels from a CSV file.

Labels read the token's text without its leading space, so that one list serves every vocabulary. A concept whose
tokens are too few in a vocabulary (month names in one of 4096 tokens) is skipped by the probe, which says so.
"""

import csv
import string
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from sae_lm.errors import SettingsError

LONG_WORD = 7
"""Letters of a long word, at least."""
NAMED = 5
"""Unknown tokens named in a message, at most."""
SUFFIXES = ("ing", "ed", "ly", "s", "er", "ion", "al", "ent", "able", "ness", "ity", "est")
PUNCTUATION = {
    "bracket": "()[]{}<>",
    "quotation mark": "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb",
    "sentence end": ".!?\u2026",
    "comma, colon or semicolon": ",:;",
    "operator": "+-*/=<>%&|^~@",
    "dash or underscore": "-_\u2013\u2014",
}
"""Class of punctuation -> its characters: a token is of a class if it is punctuation and holds one of them."""
WORD_LISTS = {
    "month or weekday": "january february march april may june july august september october november december jan feb "
    "mar apr jun jul aug sep sept oct nov dec monday tuesday wednesday thursday friday saturday sunday mon tue wed thu "
    "fri sat sun",
    "number word": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million "
    "billion dozen first second third fourth fifth sixth seventh eighth ninth tenth half quarter once twice both",
    "colour": "red orange yellow green blue purple violet pink brown black white grey gray crimson scarlet golden silver "
    "cyan magenta turquoise beige ivory",
    "pronoun": "i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its "
    "itself we us our ours ourselves they them their theirs themselves who whom whose someone somebody something "
    "anyone anybody anything everyone everybody everything nobody nothing none each other another",
    "preposition": "about above across after against along among around at before behind below beneath beside besides "
    "between beyond by despite down during except for from in inside into like near of off on onto out outside over "
    "past per since through throughout to toward towards under until up upon via with within without",
    "auxiliary verb": "am is are was were be been being do does did done doing have has had having can could may might "
    "must shall should will would cannot",
    "conjunction or adverb": "and or but nor so yet if then else because although though while when where whether unless "
    "as than how why not very too also only just even still again ever never always often here there now soon already "
    "however therefore thus perhaps almost quite rather much more most less least",
    "family or person": "man woman men women boy girl child children father mother brother sister son daughter wife "
    "husband uncle aunt cousin friend baby king queen prince princess lord lady sir mr mrs miss doctor captain general "
    "count countess people person gentleman",
    "body part": "head face eye eyes ear ears nose mouth lip lips tooth teeth neck throat shoulder shoulders arm arms "
    "hand hands finger fingers chest heart breast back stomach leg legs knee knees foot feet hair skin bone blood brain",
    "country or nationality": "america american england english britain british france french germany german italy "
    "italian spain spanish russia russian china chinese japan japanese india indian canada canadian mexico mexican "
    "australia australian brazil greece greek egypt turkey turkish poland polish sweden ireland irish scotland scottish "
    "israel iran iraq korea korean africa african europe european asia asian",
    "Python keyword or builtin": "false none true and as assert async await break class continue def del elif else "
    "except finally for from global if import in is lambda nonlocal not or pass raise return try while with yield self "
    "cls abs all any bool bytearray bytes callable chr classmethod dict dir enumerate eval exec filter float format "
    "frozenset getattr globals hasattr hash hex id input int isinstance issubclass iter len list locals map max min next "
    "object oct open ord pow print property range repr reversed round set setattr slice sorted staticmethod str sum "
    "super tuple type vars zip keyerror valueerror typeerror indexerror attributeerror runtimeerror exception",
    "thing in a program": "function method module package object class instance attribute argument arguments parameter "
    "parameters variable value values type types string strings number integer list dictionary tuple sequence iterator "
    "file files path directory name names key keys index item items error exception code line lines call thread process "
    "server socket request response header message data buffer byte bytes character encoding option options default "
    "input output stream result test interface version",
}
"""Concept -> its words, in lower case."""


def _word(text: str) -> str:
    return text.strip()


def spelled(text: str) -> str:
    """A token's word, whatever its case and the spaces around."""
    return _word(text).casefold()


def _suffix(ending: str) -> Callable[[str], bool]:
    return lambda text: len(_word(text)) > len(ending) + 1 and _word(text).isalpha() and _word(text).endswith(ending)


def _first_letter(letter: str) -> Callable[[str], bool]:
    return lambda text: _word(text).isalpha() and _word(text)[0].lower() == letter


def _punctuation(text: str) -> bool:
    return bool(_word(text)) and not any(c.isalnum() or c.isspace() or c == "\ufffd" for c in _word(text))


def _holds(characters: str) -> Callable[[str], bool]:
    return lambda text: _punctuation(text) and any(c in characters for c in text)


def _listed(words: str) -> Callable[[str], bool]:
    known = frozenset(words.split())
    return lambda text: _word(text).lower() in known


LABELS: dict[str, Callable[[str], bool]] = {
    "leading space": lambda text: text.startswith(" ") and bool(_word(text)),
    "capitalised": lambda text: _word(text)[:1].isupper() and _word(text)[1:].islower(),
    "all capitals": lambda text: len(_word(text)) > 1 and _word(text).isalpha() and _word(text).isupper(),
    "one letter": lambda text: len(_word(text)) == 1 and _word(text).isalpha(),
    "long word": lambda text: len(_word(text)) >= LONG_WORD and _word(text).isalpha(),
    "not ASCII": lambda text: not text.isascii(),
    "digit": lambda text: any(character.isdigit() for character in text),
    "punctuation": lambda text: bool(_word(text)) and all(c in string.punctuation for c in _word(text)),
    **{name: _holds(characters) for name, characters in PUNCTUATION.items()},
    **{f"ends in -{ending}": _suffix(ending) for ending in SUFFIXES},
    **{name: _listed(words) for name, words in WORD_LISTS.items()},
    **{f"first letter {letter}": _first_letter(letter) for letter in string.ascii_lowercase},
}
"""Concept -> whether a token's text has it."""


class GivenLabels(NamedTuple):
    """A user's labels, as token ids of one vocabulary."""

    tokens: dict[str, frozenset[int]]
    """label -> the tokens that have it"""
    child: dict[int, str]
    """token -> its child label, where one is given; of several the first"""
    unknown: str | None
    """one sentence on the lines that match no token, or None"""


def read_labels(path: Path, vocabulary: list[str], taken: Collection[str] = LABELS) -> GivenLabels:
    """Labels from a CSV file with a header: ``token`` or ``string``, ``label``, and optionally ``child``.

    token: the token's exact text, its leading space included. string: a word, which every token has that is equal
    to it but for case and the spaces around. child: what the token counts as when the report names what an
    absorbing latent fires on (default: its own text). taken: names of concepts that there are already.
    Raises SettingsError for a file that cannot be read so, or of which no line matches a token.
    """
    lines = _lines(path, taken)
    column = "token" if lines and "token" in lines[0] else "string"
    spelling = (lambda text: text) if column == "token" else spelled
    known: dict[str, list[int]] = {}
    for token, text in enumerate(vocabulary):
        known.setdefault(spelling(text), []).append(token)
    tokens: dict[str, set[int]] = {}
    child: dict[int, str] = {}
    unknown: dict[str, None] = {}
    for line in lines:
        text, label = line[column], line["label"]
        matching = known.get(spelling(text), []) if spelling(text) else []
        if not matching:
            unknown[text] = None
            continue
        tokens.setdefault(label, set()).update(matching)
        for token in matching if line.get("child") else []:
            child.setdefault(token, line["child"])
    named = ", ".join(map(repr, list(unknown)[:NAMED])) + (", ..." if len(unknown) > NAMED else "")
    if not tokens:
        raise SettingsError(
            f"concepts {path}: none of its {len(lines)} lines matches a token of the model's vocabulary ({named}); a token "
            "is given as it is in the vocabulary, with its leading space, or in a column `string` without"
        )
    message = f"concepts {path}: {len(unknown)} of its entries are no tokens of the model's vocabulary and are left out ({named})."
    return GivenLabels({label: frozenset(ids) for label, ids in tokens.items()}, child, message if unknown else None)


def _lines(path: Path, taken: Collection[str]) -> list[dict[str, str]]:
    """Rows of the file, by column. Raises SettingsError for what is no such table."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except FileNotFoundError:
        raise SettingsError(f"concepts {path} does not exist; expected a CSV file, see --labels") from None
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise SettingsError(f"concepts {path} cannot be read as CSV in UTF-8 ({problem}); save it as such") from None
    header = [column.strip() for column in rows[0]] if rows else []
    if ("token" in header) == ("string" in header) or "label" not in header or len(set(header)) < len(header):
        raise SettingsError(
            f"concepts {path} has the columns {', '.join(header) or '(none)'}; expected `token` or `string`, `label`, "
            "and optionally `child`, each once and separated by commas"
        )
    lines = []
    for number, row in enumerate(rows[1:], 2):
        if not any(row):
            continue
        line = dict(zip(header, row, strict=False))
        label = _word(line.get("label", ""))
        if len(row) != len(header) or not label:
            raise SettingsError(
                f"concepts {path}, row {number} has {len(row)} field{'s' * (len(row) != 1)} and the label {label!r}; "
                f"expected {len(header)} fields and a label, with no quotation mark left open"
            )
        if label in taken:
            raise SettingsError(f"concepts {path}, row {number}: {label!r} is a concept already; give another label")
        lines.append(line | {"label": label})
    if not lines:
        raise SettingsError(f"concepts {path} has no rows below its header; expected one for each token or string")
    return lines


def label_table(
    vocabulary: list[str], tokens: Iterable[int], given: GivenLabels | None = None
) -> tuple[Bool[Tensor, "vocabulary concepts"], list[str], tuple[str, ...]]:
    """(labels by token id, concepts, their kinds: token or csv); rows of tokens not asked for are False."""
    users: Mapping[str, frozenset[int]] = given.tokens if given else {}
    names = [*LABELS, *users]
    table = torch.zeros(len(vocabulary), len(names), dtype=torch.bool)
    for token in tokens:
        text = vocabulary[token]
        built_in = [has(text) for has in LABELS.values()]
        table[token] = torch.tensor([*built_in, *(token in ids for ids in users.values())])
    return table, names, ("token",) * len(LABELS) + ("csv",) * len(users)
