"""Trains the experiments of the study that the repository's results.csv lacks, in a workspace of their own."""

import argparse
import sys

from animals10.adoption import train_missing
from animals10.files import UserError
from animals10.settings import Settings


def main() -> None:
    """Trains them."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    train_missing(Settings.from_environment())


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
