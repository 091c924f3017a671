"""Serves a page on this machine alone where one drops an image and sees what a stored model predicts."""

import argparse
import sys

from animals10.demo import serve
from animals10.files import UserError
from animals10.settings import Settings


def main() -> None:
    """Serves until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, help="(the first free one from 8000 on)")
    parser.add_argument("--calibrated", action="store_true", help="show calibrated probabilities")
    arguments = parser.parse_args()
    try:
        serve(Settings.from_environment(), arguments.port, arguments.calibrated)
    except UserError as error:
        sys.exit(str(error))


if __name__ in {"__main__", "__mp_main__"}:
    main()
