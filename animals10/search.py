"""Search for hyper-parameters with Optuna: each trial trains an experiment that a function makes of suggested values.

Trials are evaluated on validation images, never on the test images. They are ordinary runs in a workspace of their own,
`search/NAME/`, so `results.csv` has no rows of them; those of a cross-validated search are stored with its folds.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import pandas as pd

from animals10.augmentation import Augmentation
from animals10.cross_validation import FoldedImages, cross_entropy, link_data
from animals10.data_preparation import SharedImages
from animals10.evaluation import metrics
from animals10.experiments import Experiment, Training, check_id
from animals10.files import UserError, display_path, read_table, user_facing_os_errors
from animals10.models import Transfer
from animals10.runs import VALIDATION, Run
from animals10.settings import Settings
from animals10.splits import load_splits
from animals10.training import train_in
from animals10.workspace import Workspace

if TYPE_CHECKING:
    import optuna

FOLDER = "search"  # in the workspace
DIRECTIONS = {"val_loss": "minimize", "val_accuracy": "maximize"}
FIRST_EPOCHS = 5  # a trial is not pruned before

Space = Callable[["optuna.Trial"], Experiment]


@dataclass(frozen=True, eq=False)
class Search:
    """A search with all its trials. As text it is its best ten.

    Attributes:
        name: Its name.
        metric: What it optimises: `val_loss` or `val_accuracy`.
        table: One row per trial, best first: `trial`, its number; `state`: `complete`, `pruned` or `failed`;
            `val_accuracy` and `val_loss`, the mean cross-entropy, where it is complete: on the validation images, or
            means over folds; `epochs`, summed over folds; `seconds` of the whole trial; the suggested values; and
            `reason`, why it failed.
        best: The experiment of the best trial.
        study: The study of Optuna, for its figures and further analysis.
    """

    name: str
    metric: str
    table: pd.DataFrame
    best: Experiment
    study: "optuna.Study"

    def __repr__(self) -> str:
        counts = self.table.state.value_counts()
        words = ", ".join(f"{counts[state]} {state}" for state in ("complete", "pruned", "failed") if state in counts)
        shown = self.table.drop(columns="reason").head(10).dropna(axis="columns", how="all")
        text = shown.to_string(index=False, float_format="{:.4g}".format)
        return f"{self.name}: {words}; best {self.metric} first\n{text}"


def search(
    settings: Settings,
    space: Space,
    trials: int = 50,
    name: str = "search",
    metric: str = "val_loss",
    folds: int = 0,
    repeats: int = 1,
) -> Search:
    """Searches for the experiment that does best on validation images.

    The tree-structured Parzen estimator suggests values (J. Bergstra et al., NeurIPS 2011). A trial that falls behind
    the median of the others at the same epoch, or fold, is pruned. The search is stored in `search/NAME/trials.log`: it
    resumes after an interruption with the trial that was interrupted, and ends as if it had not been.

    Args:
        settings: The settings; `only` is ignored.
        space: Returns the experiment of a trial, whose `suggest_…` methods it calls; see `transfer_space`.
        trials: Number of trials in all, those of an earlier call included.
        name: Names the search.
        metric: `val_loss`, the mean cross-entropy on the validation images, or `val_accuracy`. Where there are few
            images, many trials have the same accuracy.
        folds: 0 to train on the training set and evaluate on the validation set; else the number of folds to
            cross-validate each trial on, see `cross_validate`.
        repeats: How often folds are drawn.

    Raises:
        UserError: Optuna is not installed, no trial is complete, an argument is not allowed, or the search of this name
            was made with other images, settings, arguments or values.
    """
    optuna = _optuna()
    check_id(name)
    if metric not in DIRECTIONS:
        raise UserError(f"There is no metric {metric!r} to search by: allowed are {', '.join(DIRECTIONS)}.")
    if trials < 1:
        raise UserError(f"A search of {trials} trials: there must be 1 or more.")
    settings = settings.model_copy(update={"only": ()})
    folder = settings.root / FOLDER / name
    with user_facing_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    evaluate = _Folds(settings, folds, repeats) if folds else _Validation(settings, folder)
    study = _study(optuna, folder, name, metric, first=0 if folds else FIRST_EPOCHS)
    _check_same(study, folder, evaluate.conditions | {"metric": metric})
    for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):  # it was interrupted
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    while (done := len(_ended(study))) < trials and not settings.publish:
        # A sampler per trial: what it suggests does not depend on where the search was interrupted.
        study.sampler = optuna.samplers.TPESampler(seed=settings.seed * 100_003 + done)
        _run_trial(optuna, study, space, evaluate, metric, f"[trial {done + 1}/{trials}] ")
    table = _table(study, metric)
    if "complete" not in set(table.state):
        why = f"; the last reason: {table.reason.iloc[-1]}" if len(table) else ""
        raise UserError(f"No trial of the search {name} is complete{why or '.'}")
    best = space(optuna.trial.FixedTrial(study.trials[table.trial.iloc[0]].params))
    return Search(name, metric, table, best, study)


def transfer_space(backbone: str, unfreeze_last: tuple[int, ...] = (), epochs: int = 30) -> Space:
    """Returns a space of classifiers on a pretrained backbone, without vertical flip, with class weights and cosine.

    Values: learning rate, 0.0001 to 0.01; width of a hidden layer, and its dropout; dropout of the pooled features;
    label smoothing; weight decay of AdamW; MixUp.

    Args:
        backbone: A name in `BACKBONES`.
        unfreeze_last: Numbers of last layers to choose from, which are then fine-tuned after the head is trained, at a
            learning rate of 0.00001 to 0.001; 0 among them stands for the head alone. Empty for heads alone.
        epochs: Maximum epochs of the head, and of fine-tuning.
    """

    def space(trial: "optuna.Trial") -> Experiment:
        units = trial.suggest_categorical("dense_units", (0, 64, 128, 256, 512))
        dropout = (trial.suggest_float("dropout", 0, 0.6, step=0.1),) if units else ()
        feature_dropout = trial.suggest_float("feature_dropout", 0, 0.6, step=0.1)
        model = Transfer(backbone, (units,) if units else (), dropout, feature_dropout=feature_dropout)
        training = Training(
            learning_rate=trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
            epochs=epochs,
            class_balance="none",
            augmentation=Augmentation(vertical_flip=False),
            schedule="cosine",
            class_weights=True,
            optimizer="adamw",
            weight_decay=trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True),
            label_smoothing=trial.suggest_categorical("label_smoothing", (0.0, 0.05, 0.1)),
            mixup=trial.suggest_categorical("mixup", (0.0, 0.2)),
        )
        head = Experiment(f"{backbone}_head", model, training)
        layers = trial.suggest_categorical("unfreeze_last", unfreeze_last) if unfreeze_last else 0
        if not layers:
            return head
        tuning = replace(training, learning_rate=trial.suggest_float("tuning_rate", 1e-5, 1e-3, log=True))
        return Experiment(f"{backbone}_tuned", replace(model, unfreeze_last=layers), tuning, init_from=head)

    return space


# ── Trials ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Pruning(keras.callbacks.Callback):
    """Reports the validation accuracy after each epoch; ends training where the trial falls behind."""

    def __init__(self, optuna: Any, trial: "optuna.Trial", metric: str):
        super().__init__()
        self.optuna, self.trial, self.metric, self.is_hopeless = optuna, trial, metric, False

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        # The loss of training cannot be compared between trials: label smoothing and MixUp change what it is.
        accuracy = (logs or {})["val_accuracy"]
        self.trial.report(accuracy if self.metric == "val_accuracy" else 1 - accuracy, epoch)
        if self.trial.should_prune():
            self.is_hopeless = self.model.stop_training = True

    def on_train_end(self, logs: dict | None = None) -> None:
        if self.is_hopeless:  # raised here, not before: the line of progress has ended now
            raise self.optuna.TrialPruned


class _Validation:
    """Evaluates trials on the validation set."""

    def __init__(self, settings: Settings, folder: Path):
        splits = load_splits(settings)
        shared = SharedImages(settings, pd.concat([splits.train, splits.val]))
        link_data(settings, folder / "data")
        # The test set stays untouched: the validation images stand in its place.
        own = replace(splits, test=splits.val)
        self.workspace = Workspace(settings.model_copy(update={"root": folder}), shared, splits.sha256, own)
        self.conditions = _conditions(settings, splits.sha256) | {"folds": 0, "repeats": 1}

    def __call__(
        self, optuna: Any, trial: "optuna.Trial", experiment: Experiment, metric: str, title: str
    ) -> dict[str, float]:
        pruning = _Pruning(optuna, trial, metric)
        try:
            [run] = train_in(self.workspace, [experiment], title, pruning)
        except optuna.TrialPruned:
            unfinished = f".{experiment.id}-{self.workspace.digest(experiment)}"
            shutil.rmtree(self.workspace.settings.models / unfinished, ignore_errors=True)
            raise
        validation = read_table(_stored(run).file(VALIDATION))
        found = {"val_accuracy": metrics(validation)["accuracy"], "val_loss": cross_entropy(validation)}
        return found | {"epochs": run.row["epochs_run"]}


class _Folds:
    """Evaluates trials in cross-validation."""

    def __init__(self, settings: Settings, folds: int, repeats: int):
        self.folded = FoldedImages(settings, folds, repeats)
        self.conditions = _conditions(settings, self.folded.splits.sha256) | {"folds": folds, "repeats": repeats}

    def __call__(
        self, optuna: Any, trial: "optuna.Trial", experiment: Experiment, metric: str, title: str
    ) -> dict[str, float]:
        rows = []
        for step, (row, _, run) in enumerate(self.folded.train(experiment, title=title)):
            rows.append({name: row[name] for name in DIRECTIONS} | {"epochs": run.row["epochs_run"]})
            trial.report(float(pd.DataFrame(rows)[metric].mean()), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        table = pd.DataFrame(rows)
        return table[list(DIRECTIONS)].mean().to_dict() | {"epochs": int(table.epochs.sum())}


def _run_trial(optuna: Any, study: "optuna.Study", space: Space, evaluate: Any, metric: str, title: str) -> None:
    states, trial = optuna.trial.TrialState, study.ask()
    try:
        found = evaluate(optuna, trial, space(trial), metric, title)
    except optuna.TrialPruned:
        study.tell(trial, state=states.PRUNED)
    except UserError as error:  # it diverged, say; values of its own may not fit together
        trial.set_user_attr("reason", str(error))
        study.tell(trial, state=states.FAIL)
    else:
        for key, value in found.items():
            trial.set_user_attr(key, value)
        study.tell(trial, found[metric])


def _stored(run: Run) -> Run:
    if run.path is None:
        raise UserError(f"{run.model_id} cannot be trained: {run.why}")
    return run


# ── The study ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError("A search needs Optuna, which is not installed: run `make extras`.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(optuna: Any, folder: Path, name: str, metric: str, first: int) -> "optuna.Study":
    backends = optuna.storages.journal
    path = str(folder / "trials.log")
    # An open lock file, where the default is a symbolic link: Windows grants those to few.
    storage = optuna.storages.JournalStorage(
        backends.JournalFileBackend(path, lock_obj=backends.JournalFileOpenLock(path))
    )
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=first)
    options = {"storage": storage, "pruner": pruner, "load_if_exists": True}
    return optuna.create_study(study_name=name, direction=DIRECTIONS[metric], **options)


def _conditions(settings: Settings, data_sha256: str) -> dict[str, Any]:
    names = ("image_size", "seed", "max_epochs", "weights", "feature_cache", "views", "precision")
    return {"images": data_sha256} | {name: getattr(settings, name) for name in names}


def _check_same(study: "optuna.Study", folder: Path, conditions: dict[str, Any]) -> None:
    """Raises UserError if an earlier call had other conditions."""
    earlier = study.user_attrs.get("conditions", conditions)
    if changed := [name for name in conditions if earlier.get(name) != conditions[name]]:
        raise UserError(
            f"The search in {display_path(folder)} was made with other {', '.join(changed)}: choose another name, or "
            "delete that folder."
        )
    study.set_user_attr("conditions", conditions)


def _ended(study: "optuna.Study") -> list["optuna.trial.FrozenTrial"]:
    """Returns the trials that count: an interrupted one, which runs again, does not."""
    trials = study.get_trials(deepcopy=False)
    return [one for one in trials if one.state.name in ("COMPLETE", "PRUNED") or "reason" in one.user_attrs]


def _table(study: "optuna.Study", metric: str) -> pd.DataFrame:
    names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    rows = []
    for trial in _ended(study):
        found: dict[str, Any] = {"trial": trial.number, "state": names[trial.state.name]}
        found |= {name: trial.user_attrs.get(name) for name in ("val_accuracy", "val_loss", "epochs")}
        found["seconds"] = round(trial.duration.total_seconds(), 1) if trial.duration else None
        rows.append(found | trial.params | {"reason": trial.user_attrs.get("reason", "")})
    columns = ["trial", "state", *DIRECTIONS, "epochs", "seconds", "reason"]
    table = pd.DataFrame(rows, columns=None if rows else columns)
    order = table.sort_values([metric, "trial"], ascending=[DIRECTIONS[metric] == "minimize", True])
    return order[[*(name for name in order if name != "reason"), "reason"]].reset_index(drop=True)
