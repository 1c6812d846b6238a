"""The shape of the project: what README and the module heads promise is so."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sae_lm"
MODULES = sorted(PACKAGE.rglob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
FLOW = [
    "errors",
    "fields",
    "settings",
    "files",
    "seeds",
    "progress",
    "device",
    "background",
    "processes",
    "ledger",
    "signals",
    "embedded",
    "data",
    "sae",
    "metrics",
    "verbs",
    "cli",
]
"""A module may import from its own group and those before it."""
TRANSFORMER_LENS = {"data/activations.py", "sae/splice.py"}


def group(name):
    first = name.split(".")[0]
    return first if first in FLOW else "verbs"


def test_the_top_level_holds_what_the_design_says_and_nothing_else():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    allowed = {"sae_lm", "tests", "configs", "pyproject.toml", "README.md", "LICENSE"}
    assert {name for name in top if not name.startswith(".")} <= allowed


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.relative_to(PACKAGE).as_posix())
def test_a_module_says_what_it_is_stays_short_and_imports_one_way(module):
    text = module.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no docstring"
    assert text.count("\n") <= 400
    me = module.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
    if me in ("__init__", "__main__"):
        return
    for node in ast.walk(tree):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.startswith("transformer_lens"):
                assert module.relative_to(PACKAGE).as_posix() in TRANSFORMER_LENS
            if name.startswith("sae_lm."):
                target = group(name.removeprefix("sae_lm."))
                assert FLOW.index(target) <= FLOW.index(group(me)), f"{me} imports {name}"
                assert not (me.startswith("sae.") and name.startswith("sae_lm.data.") and "splice" not in me
                            and name != "sae_lm.data.hub"), f"{me} imports {name}"  # fmt: skip


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


def test_readmes_file_map_is_the_package():
    listed = set(re.findall(r"^  (?:  )?([\w/]+\.(?:py|jinja))", README, re.MULTILINE))
    there = {m.relative_to(PACKAGE).as_posix() for m in MODULES if m.name != "__init__.py"} - {"__main__.py"}
    assert listed == there


def test_ci_runs_the_commands_that_readme_shows():
    script = (ROOT / ".ci" / "run").read_text()
    block = re.search(r"## Set up\s*```bash\n(.*?)```", README, re.DOTALL)
    assert block is not None
    commands = [line.split("  #")[0].strip() for line in block[1].splitlines()]
    assert commands and all(re.search(rf"^{re.escape(command)}", script, re.MULTILINE) for command in commands)


def test_no_text_names_a_path_of_some_machine():
    pattern = re.compile(r"(?<![\w.])/(?:work|root|home|opt)/\w")
    for path in [*MODULES, ROOT / "README.md", *(ROOT / "tests").rglob("*.py"), *(ROOT / "configs").glob("*")]:
        assert not pattern.search(path.read_text(encoding="utf-8")), path


def test_readmes_python_example_runs(tmp_path, monkeypatch):
    """The block after the marker, on the embedded model, as a reader would paste it."""
    block = re.search(r"<!-- tested -->\s*```python\n(.*?)```", README, re.DOTALL)
    assert block is not None
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    exec(compile(block[1], "README.md", "exec"), space)
    assert space["spliced_loss"] > space["loss"] > 0
