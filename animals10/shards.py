"""Rows of arrays in shards: files that processes write each on their own, and that are read as one array.

A shard has one file per array, and a file with their checksums, which is written last. So nothing is put together, and
a shared folder need only offer that a file which was closed on one machine can be read on another. (Ranges of one file
need more: where two machines write to the same block, NFS may lose one of the two.)
"""

import io
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from animals10.files import UserError, atomic_write, display_path, read_json, remove_stale_temporary_files, write_json
from animals10.progress import tell

MOST_SHARDS = 64  # of an array: whoever reads it holds as many files open
FEWEST_ROWS = 256  # of a shard: they take seconds to compute
SPARE_BYTES = 500_000_000  # free space that they leave on the disk

Compute = Callable[[int, int], Iterator[Sequence[np.ndarray]]]


class ShardedArray:
    """Rows in several files as one read-only array. The files are mapped into memory, not copied.

    Attributes:
        shape: As that of an array.
        dtype: As that of an array.
    """

    def __init__(self, files: Sequence[Path], rows_per_file: int):
        """Maps files of `rows_per_file` rows; the last one may have fewer."""
        self._parts = [np.asarray(np.load(file, mmap_mode="r")) for file in files]
        self._rows_per_file = rows_per_file
        self.shape = (sum(map(len, self._parts)), *self._parts[0].shape[1:])
        self.dtype = self._parts[0].dtype

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Returns a copy of some rows, (n, …), in the order of their numbers, int (n,)."""
        values = np.empty((len(rows), *self.shape[1:]), self.dtype)
        numbers, places = np.divmod(rows, self._rows_per_file)
        for value, number, place in zip(values, numbers.tolist(), places.tolist(), strict=True):
            value[...] = self._parts[number][place]
        return values

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """Returns a copy of all rows."""
        return np.concatenate(self._parts, dtype=dtype or self.dtype)


@dataclass(frozen=True)
class Shards:
    """The shards of some arrays in a folder.

    Attributes:
        folder: The folder.
        title: Names the arrays in messages.
        shapes: Shape of one row of each array, by the array's name.
        dtype: Of all arrays.
        rows: Rows of each array.
        size: Rows of a shard; the last one may have fewer.
    """

    folder: Path
    title: str
    shapes: Mapping[str, tuple[int, ...]]
    dtype: str
    rows: int
    size: int

    @property
    def key_file(self) -> Path:
        """The file with the key; without it, the folder is not used."""
        return self.folder / "key.json"

    @staticmethod
    def rows_per_shard(rows: int, batch_size: int) -> int:
        """Returns the rows of a shard: a whole number of batches, so that each row is computed in the same batch."""
        return -(-max(FEWEST_ROWS, -(-rows // MOST_SHARDS)) // batch_size) * batch_size

    def begin(self, key: Mapping) -> None:
        """Makes the folder for features of this key, unless it is there; another one of this name is deleted."""
        path, expected = self.key_file, {"key": dict(key), "shard_rows": self.size}
        if self.folder.exists() and _read(path) != expected:
            print(f"{display_path(self.folder)} is damaged, or of another version; its features are recomputed.")
            shutil.rmtree(self.folder)
        if not self.folder.exists():
            self.folder.mkdir()
            write_json(expected, path)
        remove_stale_temporary_files(self.folder)

    def missing(self) -> list[int]:
        """Returns the numbers of the shards that have to be computed; a line tells of those that are damaged."""
        missing = [number for number in range(-(-self.rows // self.size)) if not self._is_sound(number)]
        if damaged := sum(self.sums_file(number).exists() for number in missing):
            print(f"{display_path(self.folder)} is damaged: {damaged} of its shards are recomputed.")
        return missing

    def check_space(self, missing: Sequence[int]) -> None:
        """Says how large the missing shards will be; raises UserError if the disk is too small for them."""
        n_rows = sum(map(self.count, missing))
        size = n_rows * np.dtype(self.dtype).itemsize * sum(int(np.prod(shape)) for shape in self.shapes.values())
        free, parent = shutil.disk_usage(self.folder).free, display_path(self.folder.parent)
        tell(
            f"{self.title}: caching features of {n_rows:,} images, {_gigabytes(size)} in {parent} "
            f"({_gigabytes(free)} free)."
        )
        if size + SPARE_BYTES > free:
            raise UserError(
                f"{parent} has {_gigabytes(free)} free, and the cached features of {self.title} need "
                f"{_gigabytes(size)}: make room (make clean-cache), lower ANIMALS10_VIEWS, or set "
                "ANIMALS10_FEATURE_CACHE=off."
            )

    def count(self, number: int) -> int:
        """Returns the number of rows of a shard."""
        return min(self.size, self.rows - number * self.size)

    def sums_file(self, number: int) -> Path:
        """Returns the file with the checksums of a shard: if it is there, the shard was written."""
        return self.folder / f"{number:03}.json"

    def arrays(self) -> dict[str, ShardedArray]:
        """Returns the arrays by name, once no shard is missing."""
        numbers = range(-(-self.rows // self.size))
        return {name: ShardedArray([self._file(name, number) for number in numbers], self.size) for name in self.shapes}

    def write(self, numbers: Sequence[int], compute: Compute, report: Callable[[int], object]) -> Iterator[int]:
        """Computes and writes shards that follow each other; yields the number of each that is written.

        Args:
            numbers: Their numbers.
            compute: Yields, from a row to another one, batches of rows of the arrays, in the order of `shapes`.
            report: Takes the number of rows of each batch.

        Raises:
            UserError: A value is too large for the dtype, or a file cannot be written.
        """
        start, stop = numbers[0] * self.size, numbers[-1] * self.size + self.count(numbers[-1])
        batches = iter(compute(start, stop))
        for number in numbers:
            self.sums_file(number).unlink(missing_ok=True)
            with ExitStack() as stack:
                files = [stack.enter_context(self._open(name, number)) for name in self.shapes]
                done = 0
                while done < self.count(number):
                    batch = next(batches)
                    for file, values in zip(files, batch, strict=True):
                        file.append(self._cast(values))
                    done += len(batch[0])
                    report(len(batch[0]))
            sums = {name: file.crc32 for name, file in zip(self.shapes, files, strict=True)}
            write_json(sums, self.sums_file(number))
            yield number

    def _open(self, name: str, number: int) -> "_File":
        return _File(self._file(name, number), self.dtype, (self.count(number), *self.shapes[name]))

    def _file(self, name: str, number: int) -> Path:
        return self.folder / f"{name}-{number:03}.npy"

    def _cast(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # the next line detects it
            values = np.ascontiguousarray(values, self.dtype)
        if not np.isfinite(values).all():
            raise UserError(f"{self.title} has features beyond {self.dtype}: set ANIMALS10_FEATURE_CACHE=float32.")
        return values

    def _is_sound(self, number: int) -> bool:
        sums = _read(self.sums_file(number))
        try:
            files = {name: self._file(name, number) for name in self.shapes}
            return sums == {name: _checksum(file, file.stat().st_mtime_ns) for name, file in files.items()}
        except OSError:  # it is missing, or cannot be read
            return False


class _File(ExitStack):
    """An array that is written row by row; its file has its name once it is complete."""

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]):
        super().__init__()
        self.file = self.enter_context(self.enter_context(atomic_write(path)).open("wb"))
        self.crc32 = 0
        header = io.BytesIO()
        description = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, description)
        self.append(np.frombuffer(header.getvalue(), "uint8"))

    def append(self, values: np.ndarray) -> None:
        """Writes some rows."""
        self.file.write(values.data)
        self.crc32 = zlib.crc32(values.data, self.crc32)


def _read(path: Path) -> object:
    try:
        return read_json(path)
    except UserError:  # it is missing or damaged
        return None


@lru_cache(maxsize=1 << 16)
def _checksum(path: Path, _changed: int) -> int:
    """Returns the CRC-32 of a file. It is read in full once per process."""
    crc32 = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            crc32 = zlib.crc32(piece, crc32)
    return crc32


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
