"""Settings: everything that the notebooks and scripts depend on besides the experiments and the images."""

import importlib.util
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import pydantic

from animals10.files import REPOSITORY, UserError, display_path
from animals10.layouts import contains_images
from animals10.pretrained import fetch_mobilenet
from animals10.sample import SAMPLE, compose_sample

NOTEBOOKS = ("01-preprocessing.ipynb", "02-CNN-modeltraining.ipynb", "03-transfer-learning.ipynb")
# What the sample trains in minutes: a CNN from scratch, two heads on a frozen backbone, and fine-tuning.
TOUR = ("conv5invto128_dense1", "mobnet2_linear_probe", "mobnet2_small", "mobnet2_small_tune20_15epochs")
TOUR_EPOCHS = 25


def _absolute_path(path: str | Path) -> Path:
    """Returns an absolute path. A leading `~` is the home folder, wherever the path comes from.

    Raises:
        ValueError: It begins with the name of a user who does not exist.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111 - a Path forgets that ./~a is no home folder
    if str(expanded).startswith("~"):
        raise ValueError(f"there is no home folder {Path(expanded).parts[0]}; write ./~… for a folder of that name")
    return Path(expanded).resolve()


class Settings(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The settings of a workspace. Each is also an environment variable, `ANIMALS10_<NAME>`.

    Attributes:
        root: The workspace: contains `data/`, `models/` and `results.csv`.
        raw: Folder of the raw images, one folder per class; or a csv table of files and labels. Never modified. By
            default `data/raw-img` in the workspace.
        table_columns: The columns of that table: of files, of labels and, if there is one, of the split; empty to
            recognise them by their names.
        profile: `full` for the user's own images, `sample` for drawings that come with the repository.
        image_size: Edge of the square images that the models see, in pixels.
        resize: How images are made square: `stretch` changes their aspect ratio, as in the original study; `crop` takes
            the largest square at the centre, and `pad` adds grey at two edges. None for what the workspace has, and
            `stretch` in a new one. A model is given all images in the way in which it was trained.
        weights: Initial weights of backbones: `imagenet`, `random`, or a folder of `<backbone>.weights.h5` files.
        only: Ids of the experiments to train; empty for all. In a text, commas or blanks separate them, and an id that
            has some of its own stands in double quotes.
        all: Whether the sample profile trains every experiment for one epoch, with random weights, in place of the
            tour; the full profile trains every experiment anyway.
        max_epochs: Maximum epochs of every run; None for no limit beyond the experiment's own.
        force: Whether finished runs are trained again.
        split: `grouped` keeps near-duplicates in the same part of the split; `published` splits as the original study.
        seed: The seed of the split, resampling, initial weights, shuffling, dropout and augmentation.
        feature_cache: Precision of the cached features of frozen layers; `off` recomputes them in every epoch.
        views: Augmented views of each training image in the feature cache; epochs take turns with them.
        precision: Compute precision of training, see `precision.resolve_precision`; the default is float32 on a CPU and
            mixed float16 on a GPU.
        deterministic: Whether a GPU must repeat results bit by bit, which is slower. A CPU always does.
        cluster: Where runs are trained: empty for this process, `local` for several processes of this machine, `auto`
            for the Ray cluster that `RAY_ADDRESS` names, or that this machine belongs to.
        cpus_per_run: Threads of a run, and the CPUs that it takes of a cluster. By default all cores of this process,
            and 2 in a cluster. Equal numbers give equal results, to the last digit.
        gpus_per_run: GPUs that a run takes of a cluster, also a part of one such as 0.5. By default 1 where this
            machine has a GPU, else 0.
        tensorboard: Whether each training writes a folder of `logs/` for TensorBoard.
        publish: Whether notebooks are executed for publication: nothing is trained, and figures show no photographs.
            Figures learn this from the environment variable alone, see `hides_photographs`.
    """

    root: Path
    raw: Path = pydantic.Field(default_factory=lambda values: values["root"] / "data" / "raw-img")
    table_columns: tuple[str, ...] = ()
    profile: Literal["full", "sample"] = "full"
    image_size: int = pydantic.Field(224, ge=32, le=1024)
    resize: Literal["stretch", "crop", "pad"] | None = None
    weights: str = "imagenet"
    only: tuple[str, ...] = ()
    all: bool = False
    max_epochs: int | None = pydantic.Field(None, ge=1)
    force: bool = False
    split: Literal["grouped", "published"] = "grouped"
    seed: int = pydantic.Field(5, ge=0, lt=2**31)
    feature_cache: Literal["float16", "float32", "off"] = "float16"
    views: int = pydantic.Field(4, ge=1, le=100)
    precision: Literal["default", "float32", "bfloat16", "auto"] = "default"
    deterministic: bool = False
    cluster: Literal["", "local", "auto"] = ""
    cpus_per_run: int | None = pydantic.Field(None, ge=1)
    gpus_per_run: float | None = pydantic.Field(None, ge=0)
    tensorboard: bool = False
    publish: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, **values: Any) -> "Settings":
        """Reads the `ANIMALS10_*` variables. An empty variable counts as unset.

        Without `ANIMALS10_PROFILE`, the profile is `full` if there are images or processed ones, or if a raw folder is
        named. Otherwise it is `sample`, with a message. The sample profile composes its images where they are missing,
        trains the tour, and tries to download the weights that the tour needs: without them, they are random.

        Args:
            environment: The variables.
            **values: Settings that hold where the environment has none, as the first cell of each notebook gives them;
                None counts as unset. Relative paths are relative to the repository.

        Raises:
            UserError: A value is invalid; the message names the variable, the value and what is allowed.
        """
        given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
        paths = {name: str(given[name]) for name in ("root", "raw") if name in given}
        given |= {name: path if path.startswith("~") else REPOSITORY / path for name, path in paths.items()}
        given |= {
            name.removeprefix("ANIMALS10_").lower(): text.strip()
            for name, text in environment.items()
            if name.startswith("ANIMALS10_") and text.strip()
        }
        settings = cls(**{"root": REPOSITORY} | given)
        is_empty = not (contains_images(settings.raw) or (settings.data / "processed-overview.csv").exists())
        if "profile" not in given and "raw" not in given and is_empty:
            path = display_path(settings.raw)
            print(f"There are no images in {path}: using the sample profile, with drawings.")
            given["profile"] = "sample"
        return cls._of_sample(given) if given.get("profile") == "sample" else settings

    @classmethod
    def _of_sample(cls, given: dict[str, Any]) -> "Settings":
        sample = {"root": REPOSITORY / "build" / "sample", "raw": SAMPLE, "weights": "random", "views": 1}
        settings = cls(**sample | {"only": TOUR, "max_epochs": TOUR_EPOCHS} | given)
        if settings.all:
            settings = cls(**sample | {"max_epochs": 1} | given)
        if settings.raw == SAMPLE:
            compose_sample()
        if "weights" in given or settings.all:
            return settings
        if not (reason := fetch_mobilenet(settings.image_size)):
            return settings.model_copy(update={"weights": "imagenet"})
        print(f"There are no ImageNet weights ({reason}): MobileNetV2 has random ones, and its results mean nothing.")
        return settings

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Returns a copy with other values, which are checked as those of `Settings(...)` are.

        Raises:
            UserError: A value is invalid.
        """
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | dict(update or {}))

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, values: Any, handler: Callable[[Any], Self]) -> Self:
        try:
            return handler(values)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            name = f"ANIMALS10_{first['loc'][0]}".upper()
            reason = first["msg"].removeprefix("Value error, ")
            raise UserError(
                f"{name} is missing." if first["type"] == "missing" else f"{name} is {first['input']!r}: {reason}."
            ) from None

    @pydantic.field_validator("root", "raw", mode="before")
    @classmethod
    def _absolute(cls, path: Any) -> Any:
        return _absolute_path(path) if isinstance(path, (str, Path)) else path

    @pydantic.field_validator("weights")
    @classmethod
    def _weights_exist(cls, text: str) -> str:
        if text in ("imagenet", "random"):
            return text
        if not (path := _absolute_path(text)).is_dir():
            raise ValueError("allowed is imagenet, random or an existing folder of <backbone>.weights.h5 files")
        return str(path)

    @pydantic.field_validator("only", mode="before")
    @classmethod
    def _as_ids(cls, ids: str | Sequence[str]) -> tuple[str, ...]:
        """Splits a text at commas and blanks. Which ids exist is known to the experiments, not here."""
        if not isinstance(ids, str):
            return tuple(ids)
        return tuple(quoted or plain for quoted, plain in re.findall(r'"([^"]+)"|([^\s,]+)', ids))

    @pydantic.field_validator("table_columns", mode="before")
    @classmethod
    def _as_columns(cls, names: str | Sequence[str]) -> tuple[str, ...]:
        """Splits a text at commas."""
        columns = tuple(name.strip() for name in (names.rstrip(", ").split(",") if isinstance(names, str) else names))
        if columns and not (len(columns) in (2, 3) and all(columns)):
            raise ValueError("allowed are two or three names, separated by commas: of files, of labels, of the split")
        return columns

    @pydantic.field_validator("tensorboard", "cluster")
    @classmethod
    def _package_is_installed(cls, wanted: bool | str, info: pydantic.ValidationInfo) -> bool | str:
        package, task = {"tensorboard": ("TensorBoard", "extras"), "cluster": ("Ray", "cluster")}[str(info.field_name)]
        if wanted and not importlib.util.find_spec(package.lower()):
            raise ValueError(f"{package} is not installed; `make {task}` installs it")
        return wanted

    @pydantic.field_validator("gpus_per_run")
    @classmethod
    def _gpus_are_whole(cls, gpus: float | None) -> float | None:
        if gpus and gpus > 1 and not gpus.is_integer():
            raise ValueError("allowed is a whole number, or a part of one such as 0.5")
        return gpus

    @property
    def raw_folder(self) -> Path:
        """The folder to which paths of raw images are relative: the raw folder, or that of the table."""
        return self.raw.parent if self.raw.is_file() else self.raw

    @property
    def data(self) -> Path:
        """Folder of all tables, of the processed images and of the feature cache."""
        return self.root / "data"

    @property
    def is_tour(self) -> bool:
        """Whether the experiments to train are those of the tour."""
        return self.profile == "sample" and self.only == TOUR

    @property
    def left_out_by(self) -> str:
        """What leaves out the experiments that are not to be trained, for messages."""
        return "the tour" if self.is_tour else "ANIMALS10_ONLY"

    @property
    def models(self) -> Path:
        """Folder of all runs, one folder per run."""
        return self.root / "models"

    @property
    def results(self) -> Path:
        """The table of all runs."""
        return self.root / "results.csv"


def hides_photographs(environment: Mapping[str, str] = os.environ) -> bool:
    """Tells whether figures must not show photographs: if `ANIMALS10_PUBLISH` has a value that does not mean no."""
    return environment.get("ANIMALS10_PUBLISH", "").strip().lower() not in ("", "0", "off", "f", "false", "n", "no")
