"""Compares training recipes of MobileNetV2 over repeated stratified folds of your photographs.

Each fold judges once in a repetition, the next one validates, the others train; pictures that show the same stay in
one fold. The ingredients of `mobnet2_best` are added one after the other to a plain recipe; what to keep is decided on
validation figures alone. With --published, the recipes of notebook 03 are trained on the same folds, and
`mobnet2_best` is compared with each of them on the test pictures, fold by fold.
"""

import argparse
import ast
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nbformat
import numpy as np
from scipy import stats
from sklearn.model_selection import StratifiedGroupKFold

import auxiliary as aux
from auxiliary import keras, pd, tf


@dataclass(frozen=True)
class Plan:
    """A head, and how the backbone's last layers are then trained along with it; without any of these if `last` is 0.

    `mirrored`: probabilities are the mean over a picture and its mirror image.
    """

    recipe: aux.Recipe = field(default_factory=aux.Recipe)
    balance: str = "mean"
    units: int = 256
    dropout: float = 0.0
    rate: float = 5e-4
    epochs: int = 15
    last: int = 0
    tuning_rate: float = 1e-4
    tuning_epochs: int = 15
    mirrored: bool = False

    def train(self, settings: aux.Settings, title: str) -> aux.Run:
        """Trains the head and, from it, the layers."""
        options = {"class_balance": self.balance, "recipe": self.recipe, "patience": 5}
        head = aux.Transfer("MobileNetV2", (self.units,) * bool(self.units), (self.dropout,) * bool(self.units))
        run = aux.train(settings, f"{title}_head", head, learning_rate=self.rate, epochs=self.epochs, **options)
        if self.last:
            tuned = replace(head, unfreeze_last=self.last)
            options |= {"learning_rate": self.tuning_rate, "epochs": self.tuning_epochs, "continues": run}
            run = aux.train(settings, title, tuned, **options)
        return run


def ingredients() -> dict[str, Plan]:
    """Returns the plans, each the one before with something more or something else."""
    plain = Plan()
    weighted = replace(plain, balance="none", recipe=aux.Recipe(class_weights=True))
    upright = replace(weighted, recipe=replace(weighted.recipe, upright=True))
    tuned = replace(upright, last=20)
    cosine = replace(tuned, recipe=replace(tuned.recipe, cosine=True))
    return {
        "head, resampled, all flips": plain,
        "+ class weights instead": weighted,
        "+ no upside down": upright,
        "+ blocks 15 and 16 tuned": tuned,
        "+ warm-up and cosine": cosine,
        "+ block 14": replace(cosine, last=29),
        "+ blocks 13 and 14": replace(cosine, last=38),
        "+ label smoothing 0.1": replace(cosine, recipe=replace(cosine.recipe, label_smoothing=0.1)),
        "+ dropout 0.3": replace(cosine, dropout=0.3),
        "+ tuning rate 0.0003": replace(cosine, tuning_rate=3e-4),
        "+ tuning rate 0.00003": replace(cosine, tuning_rate=3e-5),
        "+ mirror image, too": replace(cosine, mirrored=True),
        "no hidden layer, upright": replace(upright, units=0, rate=2e-3, epochs=30),
        "no hidden layer, tuned, cosine": replace(cosine, units=0, rate=2e-3, epochs=30),
        "no hidden layer, tuned gently": replace(cosine, units=0, rate=2e-3, epochs=30, tuning_rate=3e-5),
    }


def published_cells() -> list[str]:
    """Returns the code of notebook 03 that trains MobileNetV2, and what it needs, without showing anything."""
    notebook = nbformat.read(aux.REPOSITORY / aux.NOTEBOOKS[2], as_version=4)
    cells = [ast.parse(cell.source) for cell in notebook.cells if cell.cell_type == "code"]
    lines = [ast.unparse(node) for cell in cells for node in cell.body if isinstance(node, ast.Assign)]
    return [line for line in lines if "aux.Recipe(" in line or ("aux.train(" in line and "MobileNetV2" in line)]


def fold_settings(settings: aux.Settings, folds: np.ndarray, repetition: int, number: int) -> aux.Settings:
    """Makes the workspace of a fold: the pictures of the common one, and a split of its own."""
    root = settings.root / f"repetition {repetition}, fold {number}"
    data = root / "data"
    if not (data / "train.csv").exists():
        data.mkdir(parents=True, exist_ok=True)
        (data / "processed").symlink_to(settings.data / "processed", target_is_directory=True)
        overview = aux.read_table(settings.data / "processed-overview.csv")
        aux.write_table(overview, data / "processed-overview.csv")
        n = folds.max() + 1
        parts = {"test": folds == number, "val": folds == (number + 1) % n}
        for part, chosen in (parts | {"train": ~parts["test"] & ~parts["val"]}).items():
            aux.write_table(overview[chosen], data / f"{part}.csv")
    return settings.model_copy(update={"root": root})


def judge(settings: aux.Settings, run: aux.Run, mirrored: bool) -> dict[str, float]:
    """Returns a run's accuracy and cross-entropy on the validation pictures, and its accuracy on the test pictures."""
    model, names = aux.load_model(run.file("model.keras"))
    splits, found = aux.load_splits(settings), {}
    for part in ("val", "test"):
        table = getattr(splits, part)
        ways = [aux.batches(settings, table)]
        ways += [ways[0].map(lambda pixels, labels: (tf.reverse(pixels, [2]), labels))] if mirrored else []
        answers = [aux.predict_table(model, way, table, names).filter(like="p_") for way in ways]
        probabilities = np.mean([answer.to_numpy() for answer in answers], axis=0)
        labels = table.label.to_numpy()
        found[f"{part}_accuracy"] = float((probabilities.argmax(axis=1) == labels).mean())
        found[f"{part}_loss"] = float(-np.log(probabilities[np.arange(len(labels)), labels] + 1e-7).mean())
    keras.backend.clear_session()
    return found


def interval(differences: pd.Series, share: float) -> tuple[float, float, float]:
    """Returns the mean of paired differences between folds, and its 95 % interval.

    Folds share training pictures, so the variance is corrected (C. Nadeau and Y. Bengio, Machine Learning 52, 2003):
    `share` is the ratio of test to training pictures.
    """
    n, mean = len(differences), float(differences.mean())
    error = np.sqrt((1 / n + share) * differences.var(ddof=1))
    half = float(stats.t.ppf(0.975, n - 1) * error)
    return mean, mean - half, mean + half


def main() -> None:
    """Trains what is not trained yet, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folds", type=int, default=5, help="parts of the photographs (%(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="times they are drawn (%(default)s)")
    parser.add_argument("--published", action="store_true", help="train the recipes of notebook 03 as well")
    parser.add_argument("--ingredients", action="store_true", help="train the ingredients")
    arguments = parser.parse_args()
    settings = aux.Settings.from_environment().model_copy(update={"only": ()})
    aux.resize_photographs(settings, aux.scan_photographs(settings))
    checks, rows = aux.check_pictures(settings), []
    for repetition in range(1, arguments.repeats + 1):
        cut = StratifiedGroupKFold(arguments.folds, shuffle=True, random_state=settings.seed + repetition)
        folds = np.zeros(len(checks), int)
        for number, (_, test) in enumerate(cut.split(checks, checks.category, checks.group)):
            folds[test] = number
        for number in range(arguments.folds):
            one = fold_settings(settings, folds, repetition, number)
            place = {"repetition": repetition, "fold": number}
            for title, plan in ingredients().items() if arguments.ingredients else ():
                run = plan.train(one, f"plan_{hash_of(replace(plan, mirrored=False))}")
                rows.append(place | {"recipe": title} | judge(one, run, plan.mirrored))
            scope = {"aux": aux, "settings": one}
            for line in published_cells() if arguments.published else ():
                exec(line, scope)
                run = scope[line.partition(" ")[0]]
                if not isinstance(run, aux.Run):
                    continue
                spec = run.record["spec"]
                again = f", no. {spec['repetition']}" if spec["repetition"] > 1 else ""
                name = f"{run.model_id}, rate {spec['learning_rate']:g}{again}"
                rows.append(place | {"recipe": name} | judge(one, run, False))
            aux.write_table(pd.DataFrame(rows), settings.root / "recipes.csv")
    report(pd.DataFrame(rows), arguments.folds, f"{len(checks)} photographs")


def hash_of(plan: Plan) -> str:
    """Returns a name for a plan that the next start finds again."""
    return aux.hashlib.sha256(repr(plan).encode()).hexdigest()[:8]


def report(rows: pd.DataFrame, folds: int, pictures: str) -> None:
    """Prints means and standard deviations over the folds, and `mobnet2_best` less each other recipe on the test."""
    print(f"\n{pictures}, {folds} folds, {rows.repetition.nunique()} repetitions; mean ± standard deviation over folds")
    figures = rows.drop(columns=["repetition", "fold"]).groupby("recipe", sort=False).agg(["mean", "std"])
    table = pd.DataFrame(
        {name: [f"{m:.3f} ± {s:.3f}" for m, s in figures[name].to_numpy()] for name in figures.columns.levels[0]}
    )
    print(table.set_index(figures.index).to_string())
    wide = rows.pivot(index=["repetition", "fold"], columns="recipe", values="test_accuracy")
    best = [name for name in wide if name.startswith("mobnet2_best,")]
    for name in wide.columns.difference(best) if best else ():
        mean, low, high = interval(wide[best[0]] - wide[name], 1 / (folds - 2))
        print(f"mobnet2_best less {name}: {mean:+.3f} (95 % interval {low:+.3f} to {high:+.3f})")


if __name__ == "__main__":
    main()
