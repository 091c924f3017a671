"""Settings: everything that the notebooks and scripts depend on besides the experiments and the images."""

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic

from animals10.files import REPOSITORY, UserError, display_path
from animals10.images import contains_images

SAMPLE = REPOSITORY / "data" / "sample" / "raw-img"
NOTEBOOKS = ("01-preprocessing.ipynb", "02-CNN-modeltraining.ipynb", "03-transfer-learning.ipynb")


class Settings(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The settings of a workspace. Each is also an environment variable, `ANIMALS10_<NAME>`.

    Attributes:
        root: The workspace: contains `data/`, `models/` and `results.csv`.
        raw: Folder of the raw images, one folder per class. Never modified.
        profile: `full` for the user's own images, `sample` for the drawings that the repository ships.
        image_size: Edge of the square images that the models see, in pixels.
        weights: Initial weights of backbones: `imagenet`, `random`, or a folder of `<backbone>.weights.h5` files.
        only: Ids of the experiments to train; empty for all.
        max_epochs: Maximum epochs of every run; None for no limit beyond the experiment's own.
        force: Whether finished runs are trained again.
        split: `grouped` keeps near-duplicates in the same part of the split; `published` splits as the original study.
        seed: The seed of the split, resampling, initial weights, shuffling, dropout and augmentation.
        feature_cache: Precision of the cached features of frozen layers; `off` recomputes them in every epoch.
        views: Augmented views of each training image in the feature cache; epochs take turns with them.
        deterministic: Whether a GPU must repeat results bit by bit, which is slower. A CPU always does.
        tensorboard: Whether each training writes a folder of `logs/` for TensorBoard.
        publish: Whether notebooks are executed for publication: nothing is trained, and figures show no photographs.
            Figures learn this from the environment variable alone, see `hides_photographs`.
    """

    root: Path
    raw: Path
    profile: Literal["full", "sample"] = "full"
    image_size: int = pydantic.Field(224, ge=32, le=1024)
    weights: str = "imagenet"
    only: tuple[str, ...] = ()
    max_epochs: int | None = pydantic.Field(None, ge=1)
    force: bool = False
    split: Literal["grouped", "published"] = "grouped"
    seed: int = pydantic.Field(5, ge=0, lt=2**31)
    feature_cache: Literal["float16", "float32", "off"] = "float16"
    views: int = pydantic.Field(4, ge=1, le=100)
    deterministic: bool = False
    tensorboard: bool = False
    publish: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Reads the `ANIMALS10_*` variables. An empty variable counts as unset.

        Without `ANIMALS10_PROFILE`, the profile is `full` if there are images or `ANIMALS10_RAW` is set. Otherwise it
        is `sample`, with a message.

        Raises:
            UserError: A value is invalid; the message names the variable, the value and what is allowed.
        """
        prefix = "ANIMALS10_"
        given: dict[str, Any] = {
            name.removeprefix(prefix).lower(): text.strip()
            for name, text in environment.items()
            if name.startswith(prefix) and text.strip()
        }
        raw = Path(given.get("raw") or Path(given.get("root", REPOSITORY)) / "data" / "raw-img")
        profile = given.get("profile") or ("full" if "raw" in given or contains_images(raw) else "sample")
        if profile == "sample":
            if "profile" not in given:
                print(
                    f"There are no images in {display_path(raw)}: using the sample profile, with the shipped drawings."
                )
            given = {
                "root": REPOSITORY / "build" / "sample",
                "raw": SAMPLE,
                "weights": "random",
                "max_epochs": 1,
                "views": 1,
            } | given
        try:
            return cls(**{"root": REPOSITORY, "raw": raw} | given | {"profile": profile})
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            name = prefix + str(first["loc"][0]).upper()
            raise UserError(f"{name} is {first['input']!r}: {first['msg'].removeprefix('Value error, ')}.") from None

    @pydantic.field_validator("root", "raw")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().resolve()

    @pydantic.field_validator("weights")
    @classmethod
    def _weights_exist(cls, text: str) -> str:
        if text in ("imagenet", "random"):
            return text
        if not Path(text).expanduser().is_dir():
            raise ValueError("allowed is imagenet, random or an existing folder of <backbone>.weights.h5 files")
        return str(Path(text).expanduser().resolve())

    @pydantic.field_validator("only", mode="before")
    @classmethod
    def _as_ids(cls, ids: str | Sequence[str]) -> tuple[str, ...]:
        """Splits a text at commas and blanks. Which ids exist is known to the experiments, not here."""
        return tuple(filter(None, re.split(r"[\s,]+", ids) if isinstance(ids, str) else ids))

    @pydantic.field_validator("tensorboard")
    @classmethod
    def _tensorboard_is_installed(cls, wanted: bool) -> bool:
        if wanted and not importlib.util.find_spec("tensorboard"):
            raise ValueError("TensorBoard is not installed; `make extras` installs it")
        return wanted

    @property
    def data(self) -> Path:
        """Folder of all tables, of the processed images and of the feature cache."""
        return self.root / "data"

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
