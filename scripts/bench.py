"""Times transfer learning with and without the feature cache on synthetic images; see animals10/benchmark.py."""

import argparse
import sys
from typing import get_args

from animals10.backbones import BACKBONES as ALL_BACKBONES
from animals10.benchmark import BACKBONES, PARTS, run_benchmark
from animals10.benchmark_scale import SIZES, measure_scale
from animals10.files import UserError
from animals10.settings import Settings


def main() -> None:
    """Measures and prints."""
    views = Settings.model_fields["views"].default
    precisions = get_args(Settings.model_fields["precision"].annotation)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000, help="number of synthetic images (%(default)s)")
    parser.add_argument("--repeat", type=int, default=1, help="times that each training is repeated (%(default)s)")
    parser.add_argument("--views", type=int, default=views, help="views in the feature cache (%(default)s)")
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, choices=ALL_BACKBONES, help="(those of the study)")
    parser.add_argument("--skip", nargs="*", default=[], choices=PARTS, help="parts to leave out")
    parser.add_argument(
        "--precision", default="default", choices=precisions, help="of trainings with the feature cache (%(default)s)"
    )
    parser.add_argument("--scale", nargs="*", type=int, help="growth alone, for numbers of images")
    arguments = parser.parse_args()
    if arguments.scale is not None:
        return measure_scale(arguments.scale or SIZES)
    named = (arguments.images, arguments.repeat, arguments.views, arguments.backbones, arguments.skip)
    run_benchmark(*named, arguments.precision)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
