"""The oldest versions of Python and of packages that this study works with. It needs no package to say so."""

import builtins
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"  # its dependencies name the oldest versions
ADVICE = "python tasks.py install makes an environment (.venv) in which all fits"


class VersionError(ImportError):
    """A version is too old, or a package is missing. Its message is one line: what was found, what to do."""

    def _render_traceback_(self) -> list[str]:
        """IPython's hook: a notebook shows the line without the stack trace."""
        return [f"VersionError: {self}"]


def check_versions() -> None:
    """Checks the versions of Python and of the packages, when the package is imported.

    Raises:
        VersionError: In a notebook: something is too old or missing.
        SystemExit: The same elsewhere, so that a script ends with this one line.
    """
    if not (problem := version_problem()):
        return
    if hasattr(builtins, "__IPYTHON__"):
        raise VersionError(problem)
    sys.exit(problem)


def version_problem(python: tuple[int, ...] = sys.version_info[:2]) -> str:
    """Returns one line about what is too old or missing, and what to do; empty if nothing is.

    Args:
        python: The version of Python.
    """
    if python < (3, 11):
        return f"Python 3.11 or later is needed, and this is {python[0]}.{python[1]}: {ADVICE}."
    if not PYPROJECT.is_file():
        return ""
    from packaging.requirements import Requirement  # here, since an older Python may lack it

    old, missing = [], []
    for requirement in map(Requirement, direct_dependencies()):
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if not find_spec(requirement.name):  # else under another name, such as tensorflow-cpu
                missing.append(requirement)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            old.append(f"{requirement.name} {version} is installed and {_oldest(requirement)} or later is needed")
    if missing:
        names, wanted = ", ".join(one.name for one in missing), " ".join(f'"{one}"' for one in missing)
        return f"{names} {'is' if len(missing) == 1 else 'are'} not installed: pip install {wanted}, or {ADVICE}."
    return f"{'; '.join(old)}: {ADVICE}." if old else ""


def direct_dependencies() -> list[str]:
    """Returns what the package itself needs, with the oldest versions: `numpy>=2.0` and so on."""
    import tomllib  # here, since an older Python lacks it

    return tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]


def _oldest(requirement: "Requirement") -> str:
    return next(iter(requirement.specifier)).version
