"""What documents say is so: links, commands, code, the file map; and README is short and plain.

The file map in sae_lm/README.md is made of the first lines of the modules' docstrings. Make it anew with

    python tests/test_documents.py
"""

import ast
import importlib
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.transformer_lens_3

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sae_lm"
README = ROOT / "README.md"
CODE = PACKAGE / "README.md"
CARD = PACKAGE / "embedded" / "model" / "README.md"
"""Written by the embedded model's recipe; it has lines as long as they come."""
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(path for room in ("sae_lm", "configs", "tests") for path in (ROOT / room).rglob("*.md"))]
)
LINES, WIDTH, WORDS, COLUMNS = 180, 100, 25, 5
"""At most: of README, of a line, of a sentence, of a table."""
MAP = re.compile(r"(<!-- file map -->\n)(.*?)(<!-- end of file map -->\n)", re.DOTALL)
FENCE = re.compile(r"^(<!-- tested -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[([^\]]*)\]\(([^()\s]+)\)")
CODE_SPAN = re.compile(r"`([^`]+)`")
ABBREVIATIONS = re.compile(r"\b(?:e\.g|i\.e|etc|vs|al|cf|no|approx)\.$")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=name)
plain_documents = pytest.mark.parametrize("path", [path for path in DOCUMENTS if path != CARD], ids=name)


# --- length


def sentences(text: str) -> Iterator[str]:
    """The prose of a document, sentence by sentence: code, tables, headings, comments and links' targets left out.

    A heading, a blank line and an item of a list end a sentence too.
    """
    text = re.sub(r"<!--.*?-->", "", FENCE.sub("\n", text), flags=re.DOTALL)
    text = CODE_SPAN.sub(lambda span: re.sub(r"[.!?\[\]()|]", "_", span[1]), text)
    text = LINK.sub(lambda link: re.sub(r"[.!?](?=\s)", "", link[1]), text)
    text = re.sub(r"^(?:#.*|\s*\|.*)$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\s*(?:[-*]|\d+\.)\s", "\n\n", text, flags=re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n", text):
        sentence: list[str] = []
        for word in paragraph.split():
            sentence.append(word)
            if re.search(r"[.!?][\"'\u201d)*_]*$", word) and not ABBREVIATIONS.search(word):
                yield " ".join(sentence)
                sentence = []
        if sentence:
            yield " ".join(sentence)


def words(sentence: str) -> int:
    return sum(any(c.isalnum() for c in word) for word in sentence.split())


def test_sentences_are_found_as_a_reader_finds_them():
    text = """# A heading. Of two.

One `a.b. c` sentence, of .74 and 2.5 e.g. of [a link. Of text](target.md#x). Another
over two lines!
| a table. | no. |
- an item
- a second (in brackets.) And more?

```bash
code. more code.
```
Last: "quoted." End
"""
    assert list(sentences(text)) == [
        "One a_b_ c sentence, of .74 and 2.5 e.g. of a link Of text.",
        "Another over two lines!",
        "an item",
        "a second (in brackets.)",
        "And more?",
        'Last: "quoted."',
        "End",
    ]
    assert words("One - of `.74` & three") == 4


def test_readme_is_a_door_and_not_a_house():
    assert read(README).count("\n") <= LINES


@plain_documents
def test_no_line_of_a_document_is_wider_than_a_screen(path):
    wide = [f"{number}: {line}" for number, line in enumerate(read(path).splitlines(), 1) if len(line) > WIDTH]
    assert not wide


@plain_documents
def test_a_sentence_is_over_before_one_has_forgotten_how_it_began(path):
    assert not [sentence for sentence in sentences(read(path)) if words(sentence) > WORDS]


@plain_documents
def test_no_table_has_more_columns_than_a_reader_keeps_apart(path):
    rows = [line for line in FENCE.sub("", read(path)).splitlines() if line.startswith("|")]
    assert not [row for row in rows if len(re.findall(r"(?<!\\)\|", CODE_SPAN.sub("", row))) - 1 > COLUMNS]


# --- links and names


def anchors(path: Path) -> set[str]:
    """What GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+?)\s*$", FENCE.sub("", read(path)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", LINK.sub(r"\1", heading).lower()).replace(" ", "-") for heading in headings}


@every_document
def test_every_link_leads_somewhere_in_the_repository(path):
    dead = []
    for _, target in LINK.findall(CODE_SPAN.sub("", FENCE.sub("", read(path)))):
        file, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        there = (path.parent / file).resolve() if file else path
        if (
            not there.is_relative_to(ROOT.resolve())
            or not there.exists()
            or (anchor and (there.suffix != ".md" or anchor not in anchors(there)))
        ):
            dead.append(target)
    assert not dead


@every_document
def test_every_file_that_is_named_is_there(path):
    named = {
        span
        for span in CODE_SPAN.findall(FENCE.sub("", read(path)))
        if re.fullmatch(r"[\w/.-]+\.(py|md|toml|jinja|css|js)", span)
    }
    assert not {file for file in named if not any((place / file).exists() for place in (path.parent, PACKAGE, ROOT))}


def test_the_documents_are_all_found_from_readme():
    linked = {(README.parent / target.partition("#")[0]).resolve() for _, target in LINK.findall(read(README))}
    assert {path.resolve() for path in DOCUMENTS} - {README.resolve()} <= linked


# --- commands


def commands(text: str) -> Iterator[list[str]]:
    """Words of every command in a document's bash blocks; lines that end in a backslash go on."""
    for _, language, block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines() if language == "bash" else ():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            command: list[str] = []
            for word in [*lexer, ";"]:
                if not set(word) <= set("();<>|&"):
                    command.append(word)
                elif command:
                    yield command
                    command = []


def verbs(text: str) -> list[list[str]]:
    """Arguments of every `sae-lm`, however it is started."""
    found = []
    for command in commands(text):
        for place, word in enumerate(command):
            if word == "sae-lm" or (word == "sae_lm" and command[place - 1] == "-m"):
                found.append(command[place + 1 :])
    return found


def test_commands_are_found_however_they_are_started():
    text = "```bash\nsae-lm a b  # c\ntorchrun -n 2 -m sae_lm d \\\n  --e f && sae-lm g | tee h\n```\n`sae-lm i`\n"
    assert verbs(text) == [["a", "b"], ["d", "--e", "f"], ["g"]]


@every_document
def test_every_command_is_one_that_sae_lm_understands(path, monkeypatch):
    from sae_lm.cli import parse

    monkeypatch.chdir(ROOT)
    for arguments in verbs(read(path)):
        assert parse(arguments)[0] == arguments[0]


@every_document
def test_every_script_that_is_run_is_there_and_has_the_flags_it_is_given(path):
    for command in commands(read(path)):
        for place, word in enumerate(command):
            if word.endswith(".py"):
                script = read(ROOT / word)
                assert not [
                    flag for flag in command[place + 1 :] if flag.startswith("--") and f'"{flag}"' not in script
                ]


@every_document
def test_every_flag_that_prose_names_exists(path):
    from sae_lm.settings import VERBS

    known = {f"--{field.replace('_', '-')}" for model in VERBS.values() for field in model.model_fields}
    known |= {flag.replace("--", "--no-", 1) for flag in known} | {"--config", "--help"}
    scripts = [*(ROOT / "tests").rglob("*.py"), *(PACKAGE / "embedded").rglob("*.py")]
    known |= {flag for script in scripts for flag in re.findall(r'"(--[a-z-]+)"', read(script))}
    spans = CODE_SPAN.findall(FENCE.sub("", read(path)))
    assert not {flag for span in spans for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", span)} - known


def test_readme_lists_every_verb():
    from sae_lm.settings import VERBS

    table = re.search(r"^\| verb \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", read(README), re.MULTILINE)
    assert table is not None
    assert sorted(re.findall(r"^\| `(\w+)` \|", table[1], re.MULTILINE)) == sorted(VERBS)
    assert table[1].count("\n") == len(VERBS)


def test_ci_runs_the_commands_that_readme_shows():
    script = read(ROOT / ".ci" / "run")
    block = re.search(r"## Set up\s*```bash\n(.*?)```", read(README), re.DOTALL)
    assert block is not None
    lines = [line.split("  #")[0].strip() for line in block[1].splitlines()]
    assert lines and all(re.search(rf"^{re.escape(line)}", script, re.MULTILINE) for line in lines)


# --- Python


def blocks(path: Path) -> list[tuple[bool, str]]:
    """(whether it is marked tested, code) of each Python block."""
    return [(bool(marked), block) for marked, language, block in FENCE.findall(read(path)) if language == "python"]


def test_readmes_python_example_runs(tmp_path, monkeypatch):
    """The block after the marker, on the embedded model, as a reader would paste it."""
    (block,) = [block for marked, block in blocks(README) if marked]
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    exec(compile(block, "README.md", "exec"), space)
    assert space["spliced_loss"] > space["loss"] > 0


@every_document
def test_every_python_block_compiles_and_imports_what_there_is(path):
    for marked, block in blocks(path):
        assert not marked or path == README, "a block that is marked tested is one that a test runs"
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sae_lm"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


# --- the code's own document


def file_map() -> str:
    """Every module of the package and the first line of its docstring, folder by folder."""
    lines = ["```"]
    modules = sorted(PACKAGE.rglob("*.py"), key=lambda path: (len(path.relative_to(PACKAGE).parts) > 1, path))
    indent = max(len(path.relative_to(PACKAGE).as_posix()) for path in modules) + 2
    for path in modules:
        said = (ast.get_docstring(ast.parse(read(path))) or "nothing").splitlines()[0]
        first, *more = textwrap.wrap(said, WIDTH - indent)
        lines += [path.relative_to(PACKAGE).as_posix().ljust(indent) + first, *(" " * indent + line for line in more)]
    return "\n".join([*lines, "```", ""])


def test_the_file_map_is_what_the_modules_say_of_themselves():
    written = MAP.search(read(CODE))
    assert written is not None
    assert written[2] == file_map(), "run python tests/test_documents.py"


def test_the_table_of_folders_has_every_folder_and_no_other():
    table = re.search(r"^\| folder \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", read(CODE), re.MULTILINE)
    assert table is not None
    listed = re.findall(r"^\| `(\w+)/` \|", table[1], re.MULTILINE)
    assert sorted(listed) == sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def write_file_map() -> None:
    text, number = MAP.subn(lambda found: found[1] + file_map() + found[3], read(CODE))
    assert number == 1, f"{CODE} lacks the map's markers"
    CODE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_file_map()
