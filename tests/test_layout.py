"""docs/design.md lists every module once, and a module imports only modules above it: there are no import circles."""

import ast
import re

from animals10.files import REPOSITORY

PACKAGE = REPOSITORY / "animals10"
LAYOUT = (REPOSITORY / "docs" / "design.md").read_text(encoding="utf-8").partition("## Layout")[2]
LISTED = [name for row in re.findall(r"^\| (`.*?`) \|", LAYOUT, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]


def imported_by(name):
    """Returns the modules of the package that a module imports when it is imported itself."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    names = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {module.removeprefix("animals10.") for module in names if module.startswith("animals10.")}


def test_every_module_is_listed_once():
    assert sorted(LISTED) == sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def test_a_module_imports_only_modules_above_it():
    below = {name: sorted(imported_by(name) - set(LISTED[:place])) for place, name in enumerate(LISTED)}
    assert {name: modules for name, modules in below.items() if modules} == {}
