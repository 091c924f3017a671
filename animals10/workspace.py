"""Experiments in one workspace: what identifies their runs, and which of them are finished."""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from animals10.augmentation import AUGMENTATION_VERSION
from animals10.catalogue import CATALOGUE
from animals10.data_preparation import SharedImages
from animals10.environment import configure_device, has_gpu
from animals10.experiments import Experiment, digest
from animals10.files import UserError, file_sha256, user_facing_os_errors
from animals10.images import preprocessing_contract
from animals10.precision import frozen_precision, resolve_precision
from animals10.preprocessing import resize_mode
from animals10.runs import Run
from animals10.settings import Settings
from animals10.splits import Splits, load_splits


class Workspace:
    """The data and the runs of one workspace.

    Attributes:
        settings: The settings.
        splits: The data.
        shared: The images whose features it shares with other workspaces, if it does.
        on_gpu: Whether a GPU trains.
        resize: How its images are made square, see `preprocessing.resize_mode`.
        fold_of: The checksum of the data of which this workspace is a fold, whose test set it leaves untouched; empty
            for others.
    """

    def __init__(
        self, settings: Settings, shared: SharedImages | None = None, fold_of: str = "", splits: Splits | None = None
    ):
        """Reads the splits, unless they are given, and sets how the device computes."""
        self.settings, self.splits = settings, splits or load_splits(settings)
        self.shared, self.fold_of = shared, fold_of
        configure_device(settings.deterministic, None if settings.cluster else settings.cpus_per_run)
        is_known = settings.cluster and settings.gpus_per_run is not None  # of the machines that train
        self.on_gpu = bool(settings.gpus_per_run) if is_known else has_gpu()
        with user_facing_os_errors(settings.models):
            settings.models.mkdir(parents=True, exist_ok=True)
        self.resize = resize_mode(settings)
        self._digests: dict[Experiment, str] = {}
        self._file_sha256 = cache(file_sha256)  # of weights files, which many experiments share

    def context(self, experiment: Experiment) -> dict[str, Any]:
        """Returns the data and the resolved settings that can change the result of an experiment."""
        settings, training = self.settings, experiment.training
        cap = settings.max_epochs or training.epochs
        offers = hasattr(experiment.model, "feature_layers") or hasattr(experiment.model, "split_layer")
        cached = offers and settings.feature_cache != "off"
        contract = {name: value for name, value in preprocessing_contract(self.resize).items() if name != "description"}
        by_image = {"features": "by image"} if self.shared and cached else {}
        fold = {"fold_of": self.fold_of} if self.fold_of else {}
        precision = resolve_precision(settings.precision, experiment.model, self.on_gpu)
        frozen = frozen_precision(precision, experiment.model, self.on_gpu)
        other = {"frozen_precision": frozen} if cached and frozen != precision else {}
        return {
            "data_sha256": self.splits.sha256,
            "preprocessing": contract,
            "augmentation_version": AUGMENTATION_VERSION if training.augmentation else None,
            "image_size": settings.image_size,
            "seed": settings.seed + experiment.repetition - 1,
            "maximum_epochs": min(training.epochs, experiment.initial_epoch + cap),
            "weights": self.weights(experiment)[1],
            "feature_cache": settings.feature_cache if cached else "off",
            "views": settings.views if cached and training.augmentation else None,
            "precision": precision,
            **other,
            **by_image,
            **fold,
        }

    def weights(self, experiment: Experiment) -> tuple[str | None, str, str]:
        """Returns the weights that `build` takes, their name in `results.csv`, and why they are missing if they are."""
        backbone, chosen = getattr(experiment.model, "backbone", None), self.settings.weights
        if backbone is None:
            return None, "none", ""
        if chosen in ("random", "imagenet"):
            return (None if chosen == "random" else chosen), chosen, ""
        path = Path(chosen) / f"{backbone}.weights.h5"
        if not path.exists():
            return None, "missing", f"there is no {path.name} in {path.parent} (ANIMALS10_WEIGHTS)."
        return str(path), f"{path.name} {self._file_sha256(path)[:12]}", ""

    def digest(self, experiment: Experiment) -> str:
        """Returns the digest that names the experiment's run in this workspace."""
        if experiment not in self._digests:
            self._digests[experiment] = digest(experiment, self.context, len(self.splits.class_names))
        return self._digests[experiment]

    def latest_run(self, experiment: Experiment) -> Run | None:
        """Returns the latest finished run of an experiment, or None."""
        name = self.digest(experiment)
        folders = [path.parent for path in self.settings.models.glob(f"[!.]*-{name}/run.json")]
        folder = max(folders, key=lambda path: path.name.rsplit("-", 2)[1:], default=None)
        return Run(experiment.id, folder) if folder else None

    def initial_weights(self, experiment: Experiment) -> Run | Path | None:
        """Returns the run or file that an experiment is initialised from; None if there is none, or it is missing."""
        parent = experiment.parent
        return self.latest_run(parent) if isinstance(parent, Experiment) else parent

    def is_selected(self, experiment: Experiment) -> bool:
        """Tells whether `ANIMALS10_ONLY`, `ANIMALS10_PUBLISH` and the tour let an experiment be trained.

        The tour leaves out experiments of the catalogue alone: those of the user's own are trained.
        """
        if self.settings.publish:
            return False
        is_own = self.settings.is_tour and all(experiment.id != known.id for known in CATALOGUE)
        return is_own or not self.settings.only or is_listed(self.settings.only, experiment.id)

    def is_current(self, experiment: Experiment) -> bool:
        """Tells whether an experiment is finished, and started from the weights that its parent has now."""
        run, start, parent = self.latest_run(experiment), self.initial_weights(experiment), experiment.parent
        if run is None or start is None:
            return run is not None
        if isinstance(parent, Experiment) and self.is_selected(parent) and not self.is_current(parent):
            return False
        weights = start.record["weights_sha256"] if isinstance(start, Run) else file_sha256(start)
        return run.record["init_weights_sha256"] == weights

    def missing_parent(self, experiment: Experiment, reason: str) -> UserError:
        """Returns the error for an experiment whose parent is not trained."""
        parent = experiment.parent
        assert isinstance(parent, Experiment)
        advice = "" if self.is_selected(parent) else f" Add {parent.id} to ANIMALS10_ONLY."
        return UserError(f"{experiment.id} is initialised from {parent.id}, which is not trained: {reason}{advice}")


def is_listed(ids: Sequence[str], id: str) -> bool:
    """Tells whether `ANIMALS10_ONLY` names an id, also where the setting was split at the commas and blanks of the id.

    Letters with accents have several encodings in Unicode: they count as equal.

    Args:
        ids: What the setting holds.
        id: The id.
    """
    names, id = [unicodedata.normalize("NFC", one) for one in ids], unicodedata.normalize("NFC", id)
    parts = [part for part in re.split(r"[\s,]+", id) if part]
    sequences = [names[start : start + len(parts)] for start in range(len(names))]
    return id in names or (len(parts) > 1 and parts in sequences)
