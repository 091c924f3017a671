"""Opens JupyterLab on working copies of the notebooks, which lie in the folder `notebooks` of the workspace."""

import sys

from animals10.files import UserError
from animals10.lab import open_lab
from animals10.settings import Settings


def main() -> int:
    """Opens JupyterLab; all arguments are passed on to it."""
    return open_lab(Settings.from_environment(), sys.argv[1:])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))
