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
    port = parser.parse_args().port
    try:
        serve(Settings.from_environment(), port)
    except UserError as error:
        sys.exit(str(error))


if __name__ in {"__main__", "__mp_main__"}:
    main()
