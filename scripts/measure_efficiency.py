"""Measures what each stored run costs to keep and to ask, and writes models/<run>/efficiency.json.

All runs of the workspace, one after the other in one process, so that their times can be compared; let nothing else run
meanwhile. What was measured before is measured anew.
"""

import argparse
import json
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import auxiliary as aux
import storage
from networks import efficiency


def measure(run: aux.Run, device: str, rounds: int = 30) -> dict:
    """Measures a stored run and writes its `efficiency.json`, whole or not at all; returns what is in it.

    Raises:
        StudyError: The run's model is missing or damaged, or the file cannot be written.
    """
    path = run.file("model.keras")
    try:
        model, _ = aux.load_model(path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise aux.StudyError(f"{path} cannot be loaded ({aux.one_line(error)}): move its folder away.") from None
    found = efficiency(model, path, rounds) | {"device": device, "time": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"}
    found |= {"tensorflow": aux.tf.__version__, "keras": aux.keras.__version__}
    with aux.whole_file(run.file("efficiency.json")) as temporary:
        temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def main() -> None:
    """Measures the runs of the workspace that the environment names (ANIMALS10_ROOT), a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="single pictures to time (%(default)s)")
    rounds = parser.parse_args().rounds
    try:
        settings = aux.Settings.from_environment()
        runs, device = storage.stored_runs(settings.root), aux.use_device()
        if not runs:
            raise aux.StudyError(f"There are no runs in {aux.short(settings.root / 'models')}: run a notebook first.")
        print(f"{'run':40} {'MB':>8} {'M mult-adds':>12} {'ms, 1':>8} {'ms, 32':>8}")
        for run in runs:
            found = measure(run, device, rounds)
            figures = f"{found['model_mb']:8.1f} {found['multiply_adds']:12.1f} {found['predict_ms']:8.2f}"
            print(f"{run.model_id:40} {figures} {found['batch_ms']:8.2f}", flush=True)
            aux.keras.backend.clear_session()
        print("Each is kept in its run's efficiency.json: `make report` and aux.results_table show them.")
    except aux.StudyError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
