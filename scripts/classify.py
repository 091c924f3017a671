"""Classifies images with a stored model: one line per file, with the most probable classes.

Exit status: 0 if all files were classified, 1 if some are not usable images (their lines say why), 2 if nothing could
be done.
"""

import argparse
import os
import sys
from pathlib import Path

from animals10.files import UserError, refuse_to_replace
from animals10.runs import example_model
from animals10.settings import Settings


def _path(text: str) -> Path:
    return Path(text).expanduser()


def main() -> None:
    """Classifies the files that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n")[1])
    parser.add_argument("model", nargs="?", default="", help="a .keras file, a folder in models/, or a model id")
    parser.add_argument("images", nargs="*", help="files, folders, patterns")
    parser.add_argument("--top", type=int, default=3, help="classes per line (%(default)s)")
    parser.add_argument("--csv", type=_path, help="write all probabilities as a table")
    parser.add_argument("--json", type=_path, help="write them as JSON")
    parser.add_argument("--mirrored", action="store_true", help="predict the mean over an image and its mirror image")
    parser.add_argument("--calibrated", action="store_true", help="give calibrated probabilities")
    parser.add_argument("--reject", metavar="P", help="mark predictions below this probability, 0 to 1, as rejected")
    arguments = parser.parse_args()
    options = {"top": arguments.top, "csv_path": arguments.csv, "json_path": arguments.json}
    options |= {name: getattr(arguments, name) for name in ("mirrored", "calibrated", "reject")}
    try:
        if not (arguments.model and arguments.images):
            model = example_model(Settings.from_environment({"ANIMALS10_PROFILE": "full"} | os.environ).root)
            raise UserError(
                f"Name a model and images, as in `make classify MODEL={model} IMAGES=\"holiday '*.png'\"`, or "
                f"`python scripts/classify.py {model} holiday '*.png'`. ROOT is the workspace of the model."
            )
        from animals10.inference import classify_files  # which takes seconds

        if arguments.csv:
            refuse_to_replace(arguments.csv, "path,predicted,confidence,reason", "make classify")
        if arguments.json:
            refuse_to_replace(arguments.json, '{\n "model": "', "make classify")
        failed = classify_files(Settings.from_environment(), arguments.model, arguments.images, **options)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
