"""Draws the images of the sample again; see animals10/sample.py."""

import argparse
import sys
from pathlib import Path

from animals10.files import UserError
from animals10.sample import FONT, draw_sample
from animals10.settings import SAMPLE


def main() -> None:
    """Draws all images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=SAMPLE, help="folder to draw into; emptied first (%(default)s)")
    parser.add_argument("--font", type=Path, default=FONT, help="Noto Color Emoji (%(default)s)")
    arguments = parser.parse_args()
    draw_sample(arguments.out, arguments.font)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
