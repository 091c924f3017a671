"""Embeddings: the pooled features of images as a table, the nearest images to one, and a map of the test images."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from animals10.decoding import open_image
from animals10.features import inference_function
from animals10.files import UserError, write_json
from animals10.images import processed_pixels, rejection_reason
from animals10.preprocessing import read_overview, resize_mode
from animals10.runs import Run
from animals10.settings import Settings
from animals10.similarity import BACKBONE, PLAIN, cached_pooled_features, pooling_network, unit_length
from animals10.splits import load_splits

MAP = "embedding-map.json"  # in data/
MOST_POINTS = 3000  # of a map: a page with more becomes slow
BATCH = 64


def embed(
    settings: Settings, backbone: str = BACKBONE, images: pd.DataFrame | Sequence[str | Path] | None = None
) -> pd.DataFrame:
    """Returns the pooled features of images, computed by a backbone as the settings' weights make it.

    Features of images of the workspace are kept in its feature cache.

    Args:
        settings: The settings.
        backbone: A name in `BACKBONES`.
        images: A table of images of the workspace, such as `splits.test`; or paths of any image files; None for all
            images of the workspace.

    Returns:
        One row per image, float32, in the order of the images: the features `f0`, `f1` … The index names the image: its
        `relpath`, or the `path` of a file.

    Raises:
        UserError: There is no such backbone, its weights are missing, or an image cannot be read.
    """
    if images is None:
        images = read_overview(settings)
    outputs = pooling_network(settings, backbone)
    if isinstance(images, pd.DataFrame):
        name, index = "relpath", list(images.relpath)
        found = cached_pooled_features(settings, images, outputs, f"{backbone}-embedding", [PLAIN])[PLAIN]
    else:
        name, index = "path", [str(path) for path in images]
        found = _file_features(settings, outputs, [Path(path).expanduser() for path in images])
    keras.backend.clear_session()
    return pd.DataFrame(found, pd.Index(index, name=name), [f"f{number}" for number in range(found.shape[1])])


def _file_features(settings: Settings, outputs: keras.Model, paths: Sequence[Path]) -> np.ndarray:
    resize = resize_mode(settings)
    predict, found = inference_function(outputs), [np.empty((0, outputs.output.shape[1]), "float32")]

    def read(path: Path) -> np.ndarray:
        try:
            with open_image(path) as image:
                return processed_pixels(image, settings.image_size, resize)
        except Exception as error:
            raise UserError(f"{path} cannot be embedded ({rejection_reason(error)}): leave it out.") from None

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), BATCH):
            pixels = np.stack([*pool.map(read, paths[start : start + BATCH])])
            found.append(np.asarray(predict(keras.ops.convert_to_tensor(pixels, "float32"))[0]))
    return np.concatenate(found)


def nearest_images(
    settings: Settings, image: str | Path, n: int = 9, backbone: str = BACKBONE, embeddings: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Finds the images of the workspace that are most similar to one image.

    Args:
        settings: The settings.
        image: The `relpath` of an image of the workspace, or the path of any image file.
        n: The maximum number of images.
        backbone: A name in `BACKBONES`.
        embeddings: What `embed` returned for the images to search; by default all of the split.

    Returns:
        One row per image, the most similar first: `relpath`, `category`, `part` (`train`, `val` or `test`) and
        `cosine`, the similarity of the features, -1 to 1. The image itself is left out.

    Raises:
        UserError: There is no such image, or the features cannot be computed.
    """
    images = load_splits(settings).images.set_index("relpath")
    embeddings = embed(settings, backbone) if embeddings is None else embeddings
    if str(image) in embeddings.index:
        query = embeddings.loc[[str(image)]]
    elif Path(image).expanduser().is_file():
        query = embed(settings, backbone, [image])
    else:
        raise UserError(f"There is no image {image}: name a relpath of processed-overview.csv, or an image file.")
    similarity = unit_length(embeddings.to_numpy()) @ unit_length(query.to_numpy())[0]
    cosine = pd.Series(similarity, embeddings.index, name="cosine")
    found = images[["category", "part"]].join(cosine, how="inner").drop(index=str(image), errors="ignore")
    return found.sort_values("cosine", ascending=False, kind="stable").head(n).reset_index()


@dataclass(frozen=True, eq=False)
class EmbeddingMap:
    """The test images in two dimensions, and what a run predicts for them.

    Attributes:
        run: The name of the run's folder.
        backbone: The backbone whose pooled features are mapped.
        shares: Share of the variance that each of the two principal components has.
        n: Number of test images; points beyond `MOST_POINTS` are left out at random, correct ones first.
        points: One row per point: `relpath`, `category`, `predicted`, `x` and `y`.
    """

    run: str
    backbone: str
    shares: tuple[float, float]
    n: int
    points: pd.DataFrame

    @property
    def axes(self) -> list[str]:
        """The titles of both axes."""
        shares = enumerate(self.shares, start=1)
        return [f"principal component {number} ({share:.0%} of the variance)" for number, share in shares]

    @property
    def sample(self) -> str:
        """Says which points were left out; empty if none was."""
        left_out = len(self.points) < self.n
        return f"{len(self.points):,} of {self.n:,} test images are shown, errors first" if left_out else ""


def embedding_map(settings: Settings, run: Run, backbone: str = BACKBONE) -> EmbeddingMap:
    """Maps the test images by the first two principal components of their features at unit length (PCA).

    The map is kept in `data/embedding-map.json`, from which the report page draws it.

    Args:
        settings: The settings.
        run: A run of the workspace, whose errors are marked.
        backbone: A name in `BACKBONES`.

    Raises:
        UserError: The run was evaluated on other images, or the features cannot be computed.
    """
    test, predictions = load_splits(settings).test, run.predictions
    if list(predictions.relpath) != list(test.relpath):
        raise UserError(f"{run.model_id} was evaluated on other images than the test set of this workspace.")
    pca = PCA(2, svd_solver="full")
    places = pca.fit_transform(unit_length(embed(settings, backbone, test).to_numpy())).round(3)
    points = predictions[["relpath", "category", "predicted"]].assign(x=places[:, 0], y=places[:, 1])
    if len(points) > MOST_POINTS:
        shuffled = points.sample(frac=1, random_state=settings.seed)
        wrong_first = (shuffled.category == shuffled.predicted).sort_values(kind="stable").index
        points = points.loc[sorted(wrong_first[:MOST_POINTS])].reset_index(drop=True)
    first, second = pca.explained_variance_ratio_
    found = EmbeddingMap(run.file("run.json").parent.name, backbone, (float(first), float(second)), len(test), points)
    write_json(vars(found) | {"points": points.to_dict("list")}, settings.data / MAP)
    return found
