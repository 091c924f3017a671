# On Colab and Kaggle, this cell fetches the repository and what is missing there. Elsewhere it does nothing.
import os
import runpy
import subprocess
from pathlib import Path

if os.environ.keys() & {"COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"}:
    if not Path("scripts/hosted.py").exists():
        address, folder = "https://github.com/OWNER/animals10-notebooks", "animals10-notebooks"
        clone = ["git", "clone", "--quiet", "--depth", "1", address, folder]
        if not Path(folder).exists() and subprocess.run(clone).returncode:
            raise SystemExit(
                f"{address} could not be fetched. On Kaggle, switch on Internet in the settings at the right."
            )
        os.chdir(folder)
    runpy.run_path("scripts/hosted.py", run_name="__main__")
