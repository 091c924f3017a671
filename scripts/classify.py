"""Says what a stored model sees in pictures: a line each, with the most probable classes.

Exit status: 0 if all files were classified, 1 if some are no usable pictures (their lines say why), 2 if nothing could
be done.
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

import auxiliary as aux
from classification import Opinion, classify, find_pictures
from storage import find_model


def line(opinion: Opinion, n: int) -> str:
    """Puts an opinion into a line."""
    top = ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in opinion.top(n))
    return f"{opinion.path}: {top or f'not classified: {opinion.reason}'}"


def row(opinion: Opinion) -> dict:
    """Puts an opinion into a row: path, predicted class, its probability, the reason if there is none, all of them."""
    name, probability = (opinion.top(1) or [("", None)])[0]
    found = {"path": str(opinion.path), "predicted": name, "confidence": probability, "reason": opinion.reason}
    return found | {f"p_{name}": value for name, value in probabilities(opinion).items()}


def probabilities(opinion: Opinion) -> dict[str, float]:
    """Returns the probabilities of all classes by name; none where a file was not classified."""
    return dict(zip(opinion.class_names, map(float, opinion.probabilities), strict=False))


def write_csv(opinions: Sequence[Opinion], class_names: Sequence[str], path: Path) -> None:
    """Writes a table, a row a file."""
    columns = ["path", "predicted", "confidence", "reason", *(f"p_{name}" for name in class_names)]
    with aux.whole_file(path) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(row, opinions))


def write_json(opinions: Sequence[Opinion], model: Path, path: Path) -> None:
    """Writes the model's path and a list of files, each with the probabilities of all classes."""
    files = [
        {"path": str(opinion.path), "probabilities": probabilities(opinion), "reason": opinion.reason}
        for opinion in opinions
    ]
    with aux.whole_file(path) as temporary:
        text = json.dumps({"model": str(model), "files": files}, ensure_ascii=False, indent=1)
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def main() -> None:
    """Classifies, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n")[1])
    parser.add_argument("model", help="a .keras file, a folder in models/, or a model id")
    parser.add_argument("images", nargs="+", help="files, folders, patterns")
    parser.add_argument("--top", type=int, default=3, help="classes a line (%(default)s)")
    parser.add_argument("--csv", type=Path, help="write all probabilities as a table")
    parser.add_argument("--json", type=Path, help="write them as JSON")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files that are no Unicode
    opinions = []
    try:
        settings = aux.Settings.from_environment()
        paths, path = find_pictures(arguments.images), find_model(settings.root, arguments.model)
        model, class_names = aux.load_model(path)
        for opinion in tqdm(classify(model, class_names, paths), total=len(paths), unit="photo", disable=None):
            opinions.append(opinion)
            tqdm.write(line(opinion, arguments.top))
        if arguments.csv:
            write_csv(opinions, class_names, arguments.csv)
        if arguments.json:
            write_json(opinions, path, arguments.json)
    except aux.StudyError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    failed = sum(bool(opinion.reason) for opinion in opinions)
    if failed:
        print(f"{failed} of {len(opinions)} files were not classified.", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
