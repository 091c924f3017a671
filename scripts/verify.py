"""Verifies stored runs: files, model and predictions must be what run.json and results.csv say.

A model is loaded (in Keras's safe mode) and judges the test pictures again. Exit status 1 if a run does not hold.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import auxiliary as aux

# Of probabilities. Predictions come from stored answers of frozen layers, computed in another order than a loaded model
# computes; through the 500 layers of EfficientNetV2S that moves them by up to 0.0003.
TOLERANCE = 1e-3


def problems(settings: aux.Settings, run: aux.Run, rows: aux.pd.DataFrame) -> list[str]:
    """Returns what is wrong with a stored run, a line each."""
    record = run.record
    wrong = [
        f"{name} is not the file that was stored"
        for name, digest in record["files_sha256"].items()
        if not run.file(name).exists() or aux.file_sha256(run.file(name)) != digest
    ]
    if wrong:
        return wrong
    row = rows[rows.run_id == record["row"]["run_id"]]
    if len(row) != 1:
        return [f"{aux.short(settings.results)} holds its row {len(row)} times"]
    stored = aux.metrics(run.predictions)
    wrong += [
        f"{name} is {row[name].item()} in the table and {value} by predictions.csv"
        for name, value in stored.items()
        if not np.isclose(row[name].item(), value, rtol=0, atol=1e-12)
    ]
    splits = aux.load_splits(settings)
    if splits.sha256 != record["row"]["data_sha256"]:
        return [*wrong, "the workspace's pictures or splits are not those that it was judged on"]
    model, names = aux.load_model(run.file("model.keras"))
    again = aux.predict_table(model, aux.batches(settings, splits.test), splits.test, names)
    columns = [f"p_{name}" for name in names]
    largest = float(np.abs(again[columns].to_numpy() - run.predictions[columns].to_numpy()).max())
    if largest > TOLERANCE:
        wrong.append(f"the model's probabilities differ by up to {largest:.2g} from predictions.csv")
    return wrong


def main() -> None:
    """Verifies the runs that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", help="names of folders in models/, or model ids; all without")
    arguments = parser.parse_args()
    try:
        settings = aux.Settings.from_environment()
        folders = sorted(path for path in (settings.root / "models").glob("[!.]*") if (path / "run.json").exists())
        chosen = [path for path in folders if not arguments.runs or _named(path, arguments.runs)]
        if not chosen:
            sys.exit(f"There is no such run in {aux.short(settings.root / 'models')}.")
        rows, failed = aux.results_table(settings), 0
        for path in chosen:
            wrong = problems(settings, aux.Run(path.name, path), rows)
            failed += bool(wrong)
            print(f"{path.name}: {'; '.join(wrong) or 'as stored'}", flush=True)
    except aux.StudyError as error:
        sys.exit(str(error))
    print(f"{len(chosen)} runs verified, {failed} do not hold")
    sys.exit(failed > 0)


def _named(path: Path, names: list[str]) -> bool:
    return path.name in names or aux.Run(path.name, path).record["spec"]["model_id"] in names


if __name__ == "__main__":
    main()
