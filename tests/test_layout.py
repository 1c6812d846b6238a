"""The shape of the project: what the module heads promise is so. Documents have tests of their own."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sae_lm"
MODULES = sorted(PACKAGE.rglob("*.py"))
DOCUMENTS = [ROOT / "README.md", *(path for room in ("sae_lm", "tests") for path in (ROOT / room).rglob("*.md"))]
FLOORS = [
    {"errors", "fields", "embedded"},
    {"runtime"},
    {"hub", "settings"},
    {"lm", "sae"},
    {"data", "penalties"},
    {"training", "interp", "concepts"},
    {"metrics"},
    {"pages"},
    {"comparison", "interop"},
    {"synthetic"},
    {"commands"},
    {"cli"},
]
"""Rooms from the ground up: a module imports from its own room and from the floors below."""
TRANSFORMER_LENS = {"lm/bridge.py", "interp/splice.py"}
FUNCTION_LINES, MODULE_LINES = 60, 400


def room(name):
    """``sae.model`` and ``sae`` -> ``sae``."""
    return name.split(".")[0]


def floor(name):
    return next(number for number, rooms in enumerate(FLOORS) if room(name) in rooms)


def module_name(path):
    return path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


def imports(path):
    """The package's modules that one imports, early or late, for types only too; a name of a package is its module."""
    known = {module_name(other) for other in MODULES}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sae_lm":
            base = (node.module or "").removeprefix("sae_lm").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                yield (inner if inner in known else base), alias.name
        elif isinstance(node, ast.Import):
            yield from ((a.name.removeprefix("sae_lm."), "") for a in node.names if a.name.startswith("sae_lm."))


def test_the_top_level_holds_what_the_design_says_and_nothing_else():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    allowed = {"sae_lm", "tests", "configs", "pyproject.toml", "README.md", "LICENSE"}
    assert {name for name in top if not name.startswith(".")} <= allowed


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.relative_to(PACKAGE).as_posix())
def test_a_module_says_what_it_is_and_it_and_its_functions_stay_short(module):
    text = module.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no docstring"
    assert text.count("\n") <= MODULE_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < FUNCTION_LINES, f"{node.name} in line {node.lineno}"


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.relative_to(PACKAGE).as_posix())
def test_a_module_imports_from_its_own_room_and_the_floors_below(module):
    me = module_name(module)
    if me in ("__init__", "__main__"):
        return
    for target, name in imports(module):
        if target:
            assert room(target) == room(me) or floor(target) < floor(me), f"{me} imports {target}"
            assert not name.startswith("_"), f"{me} imports the private {name} of {target}"
            assert room(target) != "commands" or me in ("cli", "commands.demo"), f"{me} imports a command"
    names = re.findall(r"^\s*(?:from|import) (transformer_lens)\b", module.read_text(encoding="utf-8"), re.MULTILINE)
    assert not names or module.relative_to(PACKAGE).as_posix() in TRANSFORMER_LENS


def test_no_two_modules_import_each_other_not_even_by_way_of_others():
    left = {module_name(module): {target for target, _ in imports(module)} for module in MODULES}
    left.pop("__init__", None)
    while free := [name for name, targets in left.items() if not (targets - {name}) & left.keys()]:
        for name in free:
            del left[name]
    while idle := [name for name in left if not any(name in left[other] for other in left.keys() - {name})]:
        for name in idle:  # it is in no circle, it only imports one
            del left[name]
    assert not left, f"circles among {', '.join(sorted(left))}"


def test_every_public_name_can_be_imported_and_is_listed_in_order():
    import sae_lm

    assert sae_lm.__all__ == sorted(sae_lm.__all__)
    for name in sae_lm.__all__:
        assert getattr(sae_lm, name).__name__ == name
        # a module of the name would take its place as soon as anything imports it
        assert not (PACKAGE / f"{name}.py").exists()
    assert set(sae_lm.__all__) <= set(dir(sae_lm))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = sae_lm.nonsense


def test_importing_the_package_imports_nothing_heavy():
    program = "import sys, sae_lm; print([m for m in ('torch', 'transformer_lens', 'datasets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_no_text_names_a_path_of_some_machine():
    pattern = re.compile(r"(?<![\w.])/(?:work|root|home|opt)/\w")
    configs = [path for path in (ROOT / "configs").glob("*") if path.suffix != ".png"]
    for path in [*MODULES, *DOCUMENTS, *(ROOT / "tests").rglob("*.py"), *configs]:
        assert not pattern.search(path.read_text(encoding="utf-8")), path


RUNS_TRANSFORMER_LENS = re.compile(r"load_model\(|splice\(|\bcompare\(|lm\.bridge|sae_lens\.|TransformerBridge")


@pytest.mark.parametrize("file", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda f: f.name)
def test_what_runs_transformer_lens_is_tested_under_its_older_version_too(file):
    text = file.read_text(encoding="utf-8")
    if file != Path(__file__) and RUNS_TRANSFORMER_LENS.search(text):
        assert "pytestmark = pytest.mark.transformer_lens_3" in text
