"""Compares numbers of stored views by what they do to a MobileNetV2 head, over several seeds, on your photographs.

Each seed trains `mobnet2_small` with V stored views of each training photograph, and with new variations every epoch
(`off`). The split stays the same. Validation loss says more than accuracy where photographs are few.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import auxiliary as aux


def main() -> None:
    """Trains and prints a row for each number of views: means over the seeds, and standard deviations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", nargs="+", default=["1", "2", "4", "8", "off"], help="(%(default)s)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[5, 6, 7], help="(%(default)s)")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        settings = aux.Settings.from_environment().model_copy(update={"root": Path(folder), "only": ()})
        aux.resize_photographs(settings, aux.scan_photographs(settings))
        for seed in arguments.seeds:
            for views in arguments.views:
                change = {"store": "off"} if views == "off" else {"views": int(views)}
                one = settings.model_copy(update=change | {"seed": seed})
                run = aux.train(one, "views", aux.Transfer("MobileNetV2"), learning_rate=7e-4, epochs=15)
                row, history, seconds = run.record["row"], run.history, run.record["seconds"]
                rows.append({"views": views, "accuracy": row["accuracy"], "acc_val": row["acc_val"]})
                rows[-1] |= {"val_loss": history.val_loss.min(), "loss": history.loss.iloc[row["best_epoch"] - 1]}
                rows[-1] |= {"epochs": row["epochs_run"], "seconds": seconds["activations"] + seconds["fit"]}
        dataset = row["dataset"]
    table = aux.pd.DataFrame(rows).groupby("views", sort=False).agg(["mean", "std"]).round(4)
    print(f"mobnet2_small on {dataset}, weights {row['weights']}, seeds {arguments.seeds}")
    print(table.to_string())


if __name__ == "__main__":
    main()
