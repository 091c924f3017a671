"""Deletes the feature cache of a workspace; it is computed again when it is needed."""

import argparse
import shutil
import sys

from animals10.files import UserError, user_facing_os_errors
from animals10.settings import Settings


def main() -> None:
    """Deletes the cache in the workspace that ANIMALS10_ROOT names."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    folder = Settings.from_environment().data / "features"
    with user_facing_os_errors(folder, "deleted"):
        if folder.is_dir():
            shutil.rmtree(folder)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
