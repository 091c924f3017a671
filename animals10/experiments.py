"""Experiments as values: what is trained, how, and from which weights.

The experiments of this study are in `catalogue.py`.
"""

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import pandas as pd

from animals10.augmentation import Augmentation
from animals10.files import WINDOWS_DEVICE, UserError, expand_user, file_sha256
from animals10.model_checks import check_model
from animals10.models import CNN, Architecture, Transfer, network_config
from animals10.runs import Run, RunKey
from animals10.splits import CLASS_BALANCES
from animals10.values import check_values, plain_number

TRAINING_VERSION = 1  # part of each run's identity: raise it when equal settings give other numbers
MAX_ID_BYTES = 200  # a folder's name holds 255, and time and digest follow the id
# Names of devices, which Windows sees in "con.v2" as well.
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class Training:
    """The training configuration of an experiment. The defaults are those of the original study.

    Attributes:
        learning_rate: The learning rate; the highest one if it follows a schedule.
        epochs: Maximum epochs; 0 evaluates the model without training.
        patience: Epochs without a lower validation loss after which training ends.
        batch_size: Images per training step.
        class_balance: Size to which all classes are resampled: `none`, `min`, `mean` or `max`; see `splits.resample`.
        augmentation: Random changes of training images; None for none.
        optimizer: Name of a Keras optimizer; the loss is cross-entropy.
        schedule: `constant`, or `cosine`: linear warm-up over the first tenth of all steps, then cosine decay to zero
            (I. Loshchilov and F. Hutter, arXiv:1608.03983).
        class_weights: Whether the loss gives all classes the same total weight.
        label_smoothing: Probability that is spread over all classes (C. Szegedy et al., arXiv:1512.00567), 0 to 1.
        weight_decay: Weight decay of the optimizer, which is decoupled from the gradient in all of Keras's optimizers
            (I. Loshchilov and F. Hutter, arXiv:1711.05101); None for the optimizer's own: 0.004 for `adamw`.
        clip_norm: Largest norm of the gradient over all weights; 0 for none.
        ema: Momentum of an exponential moving average of the weights over the training steps, such as 0.99;
            0 for none. The averaged weights are evaluated, watched by early stopping, and stored.
        stochastic_depth: Probability that the last residual branch is skipped in training; for the residual branches
            before it, it falls linearly (G. Huang et al., arXiv:1603.09382). Only branches that are trained count.
        mixup: Alpha of the beta distribution of MixUp, 0 to 1; 0 for none (H. Zhang et al., arXiv:1710.09412). It mixes
            the images of a batch, or their cached features (V. Verma et al., arXiv:1806.05236).
        cutmix: Alpha of the beta distribution of CutMix, 0 to 1; 0 for none (S. Yun et al., arXiv:1905.04899). It mixes
            parts of the images of a batch, or of their cached feature maps. With MixUp as well, each batch takes one
            of them at random.
        layer_decay: Factor of the learning rate from each trained layer to the one before it, above 0 to 1; 1 for one
            rate for all (J. Howard and S. Ruder, arXiv:1801.06146). Weight decay does not follow it.

    Raises:
        UserError: A value is not allowed.
    """

    learning_rate: float
    epochs: int
    patience: int = 5
    batch_size: int = 32
    class_balance: str = "mean"
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    optimizer: str = "adam"
    schedule: Literal["constant", "cosine"] = "constant"
    class_weights: bool = False
    label_smoothing: float = 0.0
    weight_decay: float | None = None
    clip_norm: float = 0.0
    ema: float = 0.0
    stochastic_depth: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        for column in fields(self):
            if column.type in (float, int) or (column.name == "weight_decay" and self.weight_decay is not None):
                kind = int if column.type is int else float
                number = plain_number(f"Training: {column.name}", getattr(self, column.name), kind)
                object.__setattr__(self, column.name, number)
        check_values(
            self,
            {
                "learning_rate": (0 < self.learning_rate < float("inf"), "a number above 0"),
                "epochs": (self.epochs >= 0, "0, 1, 2 …"),
                "patience": (self.patience >= 0, "0, 1, 2 …"),
                "batch_size": (self.batch_size >= 1, "1, 2, 3 …"),
                "class_balance": (self.class_balance in CLASS_BALANCES, ", ".join(CLASS_BALANCES)),
                "augmentation": (isinstance(self.augmentation, Augmentation | None), "aux.Augmentation(…) or None"),
                "optimizer": (_is_optimizer(self.optimizer), "the name of a Keras optimizer: adam, adamw, sgd …"),
                "schedule": (self.schedule in SCHEDULES, ", ".join(SCHEDULES)),
                "class_weights": (self.class_weights in (True, False), "True or False"),
                "label_smoothing": (0 <= self.label_smoothing < 1, "a number from 0 to below 1"),
                "weight_decay": (0 <= (self.weight_decay or 0) < float("inf"), "a number from 0, or None"),
                "clip_norm": (0 <= self.clip_norm < float("inf"), "a number from 0"),
                "ema": (0 <= self.ema < 1, "a number from 0 to below 1, such as 0.99"),
                "stochastic_depth": (0 <= self.stochastic_depth < 1, "a probability from 0 to below 1"),
                "mixup": (0 <= self.mixup <= 1, "a number from 0 to 1"),
                "cutmix": (0 <= self.cutmix <= 1, "a number from 0 to 1"),
                "layer_decay": (0 < self.layer_decay <= 1, "a number above 0, up to 1"),
            },
        )

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed; then a label is the shares of all classes."""
        return bool(self.mixup or self.cutmix)


def _is_optimizer(name: Any) -> bool:
    try:
        return isinstance(name, str) and bool(keras.optimizers.get(name))
    except (ValueError, TypeError, KeyError):  # no such name, or an optimizer that wraps others
        return False


@dataclass(frozen=True)
class Experiment:
    """One experiment: an architecture, how it is trained, and whose trained weights it starts from.

    Attributes:
        id: Its name in tables and folders.
        model: The architecture.
        training: The training configuration.
        init_from: The experiment, the stored run or the `.keras` file whose trained model is the start; None to start
            from the architecture's own initial weights.
        initial_epoch: Epochs that count as done already.
        repetition: Repetitions differ in their seed alone. A repetition starts from the same repetition of `init_from`,
            unless that is itself a repetition above 1.

    Raises:
        UserError: The id cannot be part of a file name, or a value is not allowed.
    """

    id: str
    model: Architecture
    training: Training
    init_from: "Experiment | Run | Path | None" = None
    initial_epoch: int = 0
    repetition: int = 1

    def __post_init__(self) -> None:
        for name in ("initial_epoch", "repetition"):
            object.__setattr__(self, name, plain_number(name, getattr(self, name), int))
        if isinstance(self.init_from, (str, Path)):
            object.__setattr__(self, "init_from", expand_user(self.init_from))
        if not isinstance(self.init_from, (Experiment, Run, Path, type(None))):
            kind = type(self.init_from).__name__
            raise UserError(f"{self.id}: init_from is a {kind}; allowed is an experiment, a run or a .keras file.")
        check_id(self.id)
        if not callable(getattr(self.model, "build", None)) or not is_dataclass(self.model):
            kind = type(self.model).__name__
            raise UserError(f"{self.id}: model is a {kind}; a frozen dataclass with a method `build` is needed.")
        try:
            hash(self.model)
        except TypeError as error:
            kind = type(self.model).__name__
            message = f"{self.id}: {kind} must be a frozen dataclass of tuples and numbers, but has an {error}."
            raise UserError(message) from None
        if self.repetition < 1 or not 0 <= self.initial_epoch <= self.training.epochs:
            raise UserError(f"{self.id}: repetition must be 1 or more, initial_epoch from 0 to the maximum epochs.")

    @property
    def parent(self) -> "Experiment | Run | Path | None":
        """`init_from`, in the repetition that this experiment starts from."""
        if isinstance(self.init_from, Experiment) and self.init_from.repetition == 1:
            return replace(self.init_from, repetition=self.repetition)
        return self.init_from

    @property
    def key(self) -> RunKey:
        """What names it: id, learning rate, maximum epochs and repetition."""
        return RunKey(self.id, self.training.learning_rate, self.training.epochs, self.repetition)

    @property
    def is_custom(self) -> bool:
        """Whether the architecture is the user's own: its identity then includes the network that it builds."""
        return type(self.model) not in (CNN, Transfer)  # a subclass may build another network

    def specification(self) -> dict[str, Any]:
        """Returns the full specification as JSON can hold it, for `run.json`."""
        found = {"id": self.id, "model": specification(self.model), "training": specification(self.training)}
        parent = self.parent
        start = parent.model_id if isinstance(parent, Run) else str(parent) if parent else None
        start = parent.label if isinstance(parent, Experiment) else start
        return found | {"init_from": start, "initial_epoch": self.initial_epoch, "repetition": self.repetition}

    @property
    def label(self) -> str:
        """Its key in words, for messages."""
        repetition = f", repetition {self.repetition}" if self.repetition > 1 else ""
        return f"{self.id} (learning rate {self.training.learning_rate:g}, {self.training.epochs} epochs{repetition})"


def check_id(id: Any) -> None:
    """Checks that an id can be part of a file's name, on every system.

    Letter case need not tell two ids apart: the digest, which also names the folder, does.
    """
    size = len(str(id).encode("utf-8", "surrogatepass"))
    if not isinstance(id, str) or not id.strip() or size > MAX_ID_BYTES:
        raise UserError(f"An experiment's id must have 1 to {MAX_ID_BYTES} bytes; {id!r} has {size}.")
    wrong = [c for c in id if c in '/\\<>:"|?*' or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    checks = {
        f"holds {''.join(wrong[:1])!r}": wrong,
        "begins with a dot": id.startswith("."),
        "begins with a dash": id.startswith("-"),  # which commands take for an option
        "begins or ends with a blank": id != id.strip(),
        "ends with a dot": id.endswith("."),
        "is the name of a device of Windows": WINDOWS_DEVICE.match(id),
    }
    for fault, is_wrong in checks.items():
        if is_wrong:
            raise UserError(f"The id {id!r} {fault}, which a file's name may not: choose another id.")


# ── Identity ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def specification(value: Any) -> Any:
    """Returns a value in full as JSON can hold it: dataclasses as dicts with their `type`, all fields included."""
    if is_dataclass(value) and not isinstance(value, type):
        found = {column.name: specification(getattr(value, column.name)) for column in fields(value)}
        return {"type": type(value).__name__} | found
    return _plain(value, specification)


def identity(value: Any) -> Any:
    """Returns a value as it enters a digest: like `specification`, without fields that have their default.

    So a new field with a default leaves all digests as they are. Equal numbers are equal: 1.0 and 1.
    """
    if is_dataclass(value) and not isinstance(value, type):
        found = {}
        for column in fields(value):
            default = column.default if column.default_factory is MISSING else column.default_factory()
            mine = identity(getattr(value, column.name))
            if default is MISSING or mine != identity(default):
                found[column.name] = mine
        return {"type": type(value).__name__} | found
    return _plain(value, identity)


def _plain(value: Any, inner: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): inner(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [inner(part) for part in value]
    if isinstance(value, Path):
        return value.as_posix()
    raise UserError(f"A value of type {type(value).__name__} cannot be part of an experiment: {value!r}.")


Context = Callable[["Experiment"], Mapping[str, Any]]


def digest(experiment: Experiment, context: Context, n_classes: int) -> str:
    """Returns 12 hexadecimal digits that everything decides which can change the result of an experiment.

    Args:
        experiment: The experiment.
        context: Gives the data and the resolved settings of an experiment, see `workspace.Workspace.context`.
        n_classes: Number of classes.
    """
    found = identity(replace(experiment, init_from=None)) | {"training version": TRAINING_VERSION}
    found["context"] = resolved = identity(context(experiment))
    if experiment.is_custom:  # nobody raises a version for it
        found["network"] = built_config(experiment.model, n_classes, resolved["image_size"])
    parent = experiment.parent
    if isinstance(parent, Experiment):
        found["init_from"] = digest(parent, context, n_classes)
    elif isinstance(parent, Run):
        found["init_from"] = parent.record["weights_sha256"]
    elif parent is not None:
        if not parent.is_file():
            raise UserError(f"{experiment.id} is initialised from {parent}: there is no such file.")
        found["init_from"] = file_sha256(parent)
    text = json.dumps(found, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


@lru_cache(maxsize=256)
def built_config(model: Architecture, n_classes: int, image_size: int, trainable: bool = False) -> Any:
    """Returns the configuration of an architecture's network, see `models.network_config`; built once per process."""
    network = model.build(n_classes, image_size)
    if type(model) not in (CNN, Transfer):
        network = check_model(network, n_classes, image_size)
    return network_config(network, trainable)


def without_freezing(model: Architecture) -> Architecture:
    """Returns an architecture whose layers are frozen as by default: it builds the same layers."""
    if isinstance(model, Transfer):
        return replace(model, unfreeze_last=0, unfreeze_last_blocks=0, freeze_batch_norm=True)
    return model


# ── Tables ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def experiment_table(experiments: Iterable[Experiment], n_classes: int = 10, image_size: int = 224) -> pd.DataFrame:
    """Returns the hyper-parameters of experiments side by side.

    Args:
        experiments: The experiments.
        n_classes: Number of classes, on which the number of parameters depends.
        image_size: Edge of the images in pixels, likewise.

    Returns:
        One row per experiment: its id, all fields of its architecture and of its training configuration, `parameters`
        of the network, and `initialised from`. Of the training configuration and of freezing, fields that have their
        default in all rows are left out, except for the patience and the class balance.
    """
    experiments = tuple(experiments)
    table = pd.DataFrame([_hyper_parameters(one, n_classes, image_size) for one in experiments]).fillna("–")
    defaults = {_title(name): _words(value) for name, value in vars(Training(1.0, 1)).items()}
    defaults |= {"repetition": "1", "first epoch": "1", "initialised from": "–"}
    defaults |= {"feature dropout": "0", "unfrozen layers": "0", "unfrozen blocks": "0", "freeze batch norm": "yes"}
    kept = ("learning rate", "maximum epochs", "patience", "class balance")
    return table[[name for name in table if name in kept or any(table[name] != defaults.get(name))]]


def _hyper_parameters(experiment: Experiment, n_classes: int, image_size: int) -> dict[str, Any]:
    model: Any = experiment.model
    parent = experiment.parent
    row: dict[str, Any] = {"id": experiment.id}
    row |= {_title(column.name): _words(getattr(model, column.name)) for column in fields(model)}
    row |= {_title(name): _words(value) for name, value in vars(experiment.training).items()}
    row["parameters"] = f"{_count_parameters(without_freezing(model), n_classes, image_size):,}"
    row |= {"repetition": str(experiment.repetition), "first epoch": str(experiment.initial_epoch + 1)}
    start = parent.id if isinstance(parent, Experiment) else parent.model_id if isinstance(parent, Run) else parent
    return row | {"initialised from": str(start or "–")}


def _title(name: str) -> str:
    titles = {"pool_sizes": "pooling", "dense_units": "dense", "unfreeze_last": "unfrozen layers"}
    titles |= {"unfreeze_last_blocks": "unfrozen blocks", "epochs": "maximum epochs"}
    return titles.get(name, name.replace("_", " "))


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return "\u00a0".join(f"{part:g}" if isinstance(part, float) else str(part) for part in value) or "none"
    if isinstance(value, Augmentation):
        standard = identity(Augmentation())
        changed = {name: part for name, part in identity(value).items() if name not in standard}
        return ", ".join(f"{_title(name)}: {_words(part)}" for name, part in changed.items()) or "standard"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@lru_cache(maxsize=256)
def _count_parameters(model: Architecture, n_classes: int, image_size: int) -> int:
    return model.build(n_classes, image_size).count_params()
