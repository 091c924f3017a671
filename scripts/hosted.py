"""Prepares a running notebook on Colab or Kaggle; the first cell of each notebook runs this file in its kernel.

Packages that are missing are installed. None that is there is replaced, since the kernel may have loaded it. On Kaggle,
the attached images are found, and the workspace lies beside the repository, in /kaggle/working.
"""

import importlib
import os
import site
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    """Installs what is missing, and sets the variables of the environment."""
    install_missing()
    site.addsitedir(str(REPOSITORY))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        use_kaggle_folders(REPOSITORY.parent)


def install_missing() -> None:
    """Installs the dependencies that are missing, beside the packages that are there.

    Raises:
        SystemExit: That is not possible; the message is one line.
    """
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    there = {one.metadata["Name"]: one.version for one in metadata.distributions() if one.metadata["Name"]}
    names = {_normal(name) for name in there}
    missing = [text for text in project["dependencies"] if _normal(Requirement(text).name) not in names]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "kept.txt"
        kept.write_text("".join(f"{name}=={version}\n" for name, version in there.items()), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(kept)]
        done = subprocess.run([*command, *missing], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"])[-1]
        raise SystemExit(f"{', '.join(missing)} could not be installed beside the packages that are there: {reason}")
    importlib.invalidate_caches()
    print(f"Installed {', '.join(missing)}; the packages that were there are as before.")


def use_kaggle_folders(working: Path) -> None:
    """Names the workspace and the attached images to the notebooks, unless the environment does.

    Args:
        working: The folder that Kaggle keeps, `/kaggle/working`; data sets are attached in `input` beside it.
    """
    os.environ.setdefault("ANIMALS10_ROOT", str(working / "animals10"))
    # Below the name of the data set, and of its owner in some sessions.
    patterns = ["/".join(["*"] * depth + ["raw-img"]) for depth in range(5)]
    found = [path for pattern in patterns for path in sorted((working.parent / "input").glob(pattern)) if path.is_dir()]
    if found:
        os.environ.setdefault("ANIMALS10_RAW", str(found[0]))
    elif "ANIMALS10_RAW" not in os.environ:
        print("No images are attached, so the sample is used. For Animals-10: Add Input, alessiocorrado99/animals10.")


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    main()
