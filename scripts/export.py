"""Exports a stored model to LiteRT, LiteRT in 8 bit or ONNX; checks it against Keras, and times both.

Exit status: 1 if an exported model does not agree with the Keras model and is not kept, 2 if no model is named.
"""

import argparse
import os
import sys

from animals10.files import UserError
from animals10.runs import example_model
from animals10.settings import Settings


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def ask_for_model() -> None:
    """Ends with an example."""
    try:
        model = example_model(Settings.from_environment({"ANIMALS10_PROFILE": "full"} | os.environ).root)
        example = f"`make export MODEL={model} FORMAT=litert,onnx`, or `python scripts/export.py {model}`"
        print(f"Name a model, as in {example}. ROOT is the workspace of the model.", file=sys.stderr)
    except UserError as error:
        print(error, file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Exports the model that is named, from the workspace that the environment names (ANIMALS10_ROOT)."""
    if not any(sys.argv[1:]):
        ask_for_model()
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # exported models are timed on the CPU, and so is Keras
    from animals10.export import MAX_TEST_IMAGES, export_model  # which takes seconds
    from animals10.export_formats import FORMATS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="", help="a .keras file, a run's folder in models/, or a model id")
    parser.add_argument("--format", default="litert", help=f"{', '.join(FORMATS)}; several with commas (%(default)s)")
    number = {"type": _positive, "metavar": "N"}
    parser.add_argument(
        "--images", default=MAX_TEST_IMAGES, help="test images to check, at most (%(default)s)", **number
    )
    parser.add_argument("--rounds", default=30, help="calls to time at batch size 1 (%(default)s)", **number)
    parser.add_argument("--calibrated", action="store_true", help="export calibrated probabilities")
    arguments = parser.parse_args()
    if not arguments.model:
        ask_for_model()
    try:
        settings = Settings.from_environment()
        options = arguments.format, arguments.images, arguments.rounds, arguments.calibrated
        failed = export_model(settings, arguments.model, *options)
    except UserError as error:
        sys.exit(str(error))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
