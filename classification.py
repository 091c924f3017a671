"""What a stored model says of pictures that no data set holds: files of any size and format, one or ten thousand.

`auxiliary` hands on what notebooks need of it. Nothing here knows of settings, or writes a file.
"""

import glob
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import pictures
from storage import StudyError


@dataclass(frozen=True)
class Opinion:
    """What a model says of one file.

    Attributes:
        path: The file.
        class_names: What the model knows.
        probabilities: Of the classes, float32 (classes,); without any where the file is no usable picture.
        reason: Why it is none.
    """

    path: Path
    class_names: Sequence[str]
    probabilities: np.ndarray
    reason: str = ""

    def top(self, n: int = 3) -> list[tuple[str, float]]:
        """Returns the n most probable classes with their probabilities, the first one first."""
        best = np.argsort(-self.probabilities, kind="stable")[:n]
        return [(self.class_names[index], float(self.probabilities[index])) for index in best]


def find_pictures(places: Sequence[str | Path]) -> list[Path]:
    """Returns the files that are meant, each once, by place and within a place by name.

    Args:
        places: Files; folders, for all files in them and their folders; patterns with `*`, `?`, `[…]` or `**`. Hidden
            files in folders are left out.

    Raises:
        StudyError: There is nothing at a place.
    """
    found = []
    for place in map(str, places):
        path = Path(place).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.rglob("[!.]*") if not file.is_dir())
            files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        elif path.exists():
            files = [path]
        else:
            names = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            files = sorted(Path(name) for name in names if not Path(name).is_dir())
        if not files:
            raise StudyError(f"{place} holds no files." if path.is_dir() else f"There is no file or folder {place}.")
        found += files
    return list(dict.fromkeys(found))


def classify(
    model: keras.Model, class_names: Sequence[str], paths: Sequence[Path], batchsize: int = 32
) -> Iterator[Opinion]:
    """Classifies files one batch after the other, in their order; memory does not grow with their number.

    Each is made to what networks were trained on: upright, on white, bilinear, square, and saved as notebook 01 saves
    it. While a batch is judged, the next ones are read. A file that is no usable picture has a reason in place of
    probabilities, and the others go on.

    Args:
        model: Takes pixels, float32 (n, size, size, 3), 0 to 255; gives probabilities, (n, classes).
        class_names: Of its outputs, in their order.
        paths: The files.
        batchsize: Pictures that are judged at once.
    """
    size = model.input_shape[1]
    signature = tf.TensorSpec((None, size, size, 3), tf.float32)
    ask = tf.function(lambda pixels: model(pixels, training=False), input_signature=[signature], autograph=False)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ahead: deque[list[Future]] = deque()
        for start in range(0, len(paths) + 2 * batchsize, batchsize):
            ahead.append([pool.submit(_prepare, path, size) for path in paths[start : start + batchsize]])
            if len(ahead) > 2:
                batch = [future.result() for future in ahead.popleft()]
                yield from _judge(ask, class_names, batch)


def _prepare(path: Path, size: int) -> tuple[Path, np.ndarray | str]:
    """Returns a picture's pixels, uint8 (size, size, 3), or the reason why there are none."""
    try:
        with pictures.open_photograph(path) as photograph:
            return path, pictures.as_processed(photograph, size)
    except Exception as error:  # whatever is wrong with one file must not stop the others
        return path, pictures.reason_of(error)


def _judge(ask: tf.types.experimental.PolymorphicFunction, names: Sequence[str], batch: Sequence) -> Iterator[Opinion]:
    usable = [pixels for _, pixels in batch if not isinstance(pixels, str)]
    answers = iter(ask(tf.constant(np.stack(usable), tf.float32)).numpy() if usable else ())
    for path, found in batch:
        if isinstance(found, str):
            yield Opinion(path, names, np.empty(0, "float32"), found)
        else:
            yield Opinion(path, names, next(answers))
