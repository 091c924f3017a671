"""Download Animals-10 from Kaggle to data/raw-img, unless there are images already. No account is needed."""

import argparse
import sys

from animals10.dataset import download
from animals10.files import UserError
from animals10.settings import Settings


def main() -> None:
    """Downloads to the workspace that the environment names (ANIMALS10_ROOT)."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    try:
        download(Settings.from_environment())
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
