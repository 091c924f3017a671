"""Layouts of raw folders: which files there are, and the class of each and its part of a split that came with them.

A raw folder has one folder per class, or `train/`, `val/` and `test/` with class folders below. `label_tables` reads a
table of files and labels instead. No image is opened here.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from animals10.files import UserError

# What systems, archives and other programs leave in folders of images, in lower case.
SYSTEM_NAMES = frozenset(
    """.ds_store/.localized/.apdisk/icon\r/__macosx/network trash folder/temporary items/thumbs.db/ehthumbs.db
    /ehthumbs_vista.db/thumbs.db:encryptable/desktop.ini/$recycle.bin/recycler/system volume information/@eadir/@tmp
    /@recycle/@recently-snapshot/#recycle/#snapshot/lost+found/.directory/.nomedia/.picasa.ini/picasa.ini/.gitkeep
    /.gitignore/.gitattributes/.dropbox/.dropbox.attr/__pycache__""".replace("\n    ", "").split("/")
)
SYSTEM_PREFIXES = ("._", ".nfs", ".fuse_hidden", ".~lock.", "~$", ".sync_", "._sync_", ".syncthing.")
SYSTEM_SUFFIXES = (":zone.identifier",)
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .ppm .pgm .pbm .pnm .avif .heic .heif".split()
)
MOST_FOLDERS = 200  # that are looked into, to find the folder that was meant
PART_WORDS = dict.fromkeys(("train", "training", "trainset"), "train")
PART_WORDS |= dict.fromkeys(("val", "valid", "validation", "dev", "valset"), "val")
PART_WORDS |= dict.fromkeys(("test", "testing", "testset"), "test")


@dataclass(frozen=True)
class RawFile:
    """A file of the raw data, or a folder that cannot be used.

    Attributes:
        relpath: Its path below the raw folder, or below the folder of the table.
        category: Its class, named as its folder or its label; empty if it has none.
        part: `train`, `val` or `test` if the data came with a split, else empty.
        reason: Why it cannot be used, as far as that is known before it is opened; else empty.
    """

    relpath: str
    category: str = ""
    part: str = ""
    reason: str = ""


@dataclass
class RawData:
    """The files of a raw folder or of a table.

    Attributes:
        files: The files.
        messages: What a person should know about the layout, one line each.
    """

    files: list[RawFile] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    @property
    def has_split(self) -> bool:
        """Whether the data came with a split."""
        return any(file.part for file in self.files)


def is_system_entry(name: str, is_folder: bool = False) -> bool:
    """Tells whether a file or folder is one that a program left. All hidden folders count as such."""
    lower = name.lower()
    if lower in SYSTEM_NAMES or lower.startswith(SYSTEM_PREFIXES) or lower.endswith(SYSTEM_SUFFIXES):
        return True
    return is_folder and name.startswith(".")


def part_of(name: str) -> str:
    """Returns the part of a split that a name tells: `train`, `val` or `test`; empty if it tells none, or several.

    `Training`, `train2017` and `seg_train` tell the training set.
    """
    words = (word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name))
    found = {PART_WORDS[word] for word in words if word in PART_WORDS}
    return found.pop() if len(found) == 1 else ""


def readable(name: str) -> str:
    r"""Returns a name with bytes that are not UTF-8 spelled out (`caf\xe9`), so that it can be printed and stored."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def class_name(name: str) -> str:
    """Returns the class that a folder or label names: readable, in Unicode's form NFC, and short enough for a folder.

    A name from macOS (NFD) and the same name from elsewhere are one class.
    """
    text = unicodedata.normalize("NFC", readable(name))
    if len(text.encode()) <= 255:
        return text
    return f"{text.encode()[:240].decode(errors='ignore')}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def in_words(names: Sequence[str], most: int = 5) -> str:
    """Returns names in one line, separated by commas; an ellipsis stands for those after the first five."""
    return ", ".join([" ".join(readable(name).split()) for name in names[:most]] + ["…"] * (len(names) > most))


def has_class_folders(folder: Path) -> bool:
    """Tells whether a folder has folders that are not empty, or may not be read."""
    tree = _Tree(folder)
    try:
        folders, _ = tree.entries("")
    except OSError:
        return os.path.isdir(folder)  # noqa: PTH112 - a Path raises an error below a folder that may not be entered
    return any(any(tree.entries(name)) for name in folders)


def contains_images(folder: Path) -> bool:
    """Tells whether there are images in a folder, in class folders or not, or whether it may not be read."""
    if has_class_folders(folder):
        return True
    return os.path.isdir(folder) and any(map(is_image_name, _Tree(folder).entries("")[1]))  # noqa: PTH112


def is_image_name(name: str) -> bool:
    """Tells whether the name of a file ends like that of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - a Path takes three times as long


def find_in_folder(raw: Path) -> RawData:
    """Finds the files of a raw folder.

    Files in folders below a class folder count for the class. Where a folder has nothing but one folder with folders,
    as after unpacking an archive, the class folders are looked for in that one.

    Raises:
        UserError: The folders have the names of a split, but no training set with class folders.
    """
    tree = _Tree(raw)
    place, strays = tree.descend("")
    folders, files = tree.entries(place)
    if "raw-img" in folders and tree.count_classes(inner := _join(place, ["raw-img"])[0]) > 1:
        raise UserError(f"{raw} is no folder of class folders, but has one: name that, RAW={raw / inner}.")
    strays += _join(place, files)
    data = RawData(messages=[f"The class folders are those in {in_words([place])}."] if place else [])
    if parts := _find_parts(tree, place):
        names = in_words([*parts], 9)
        data.messages.append(f"The folders {names} are the split that came with the images.")
        if unused := [name for name in folders if name not in parts]:
            data.messages.append(f"They are no part of that split, and not used: {in_words(unused)}.")
            data.files += [RawFile(path, reason=f"beside the split in {names}") for path in _join(place, unused)]
    class_folders = [(path, "") for path in _join(place, folders)] if not parts else []
    for name, part in parts.items():
        inner, more_strays = tree.descend(_join(place, [name])[0], part)
        inner_folders, inner_files = tree.entries(inner)
        strays += more_strays + _join(inner, inner_files)
        if reason := tree.why_empty(inner):
            data.files.append(RawFile(inner, part=part, reason=reason))
        class_folders += [(path, part) for path in _join(inner, inner_folders)]
    data.files += [RawFile(path, reason="not in a class folder") for path in strays]
    for path, part in class_folders:
        data.files += tree.walk(path, part)
    if tree.deeper:
        n, examples = sum(tree.deeper.values()), in_words(sorted(tree.deeper), 3)
        data.messages.append(f"{n:,} files in folders below class folders count for their class: {examples}.")
        without_files = [path for path, _ in class_folders if not tree.entries(path)[1]]
        if (most := max(without_files, key=tree.count_classes, default="")) and tree.count_classes(most) > 1:
            data.messages.append(f"If those in {in_words([most])} are the classes, name it: RAW={raw / most}.")
    if part_of(raw.name) and (others := _other_parts(raw)):
        words = f"{raw.name} is used without its split: {in_words(others)} lie beside it."
        data.messages.append(f"{words} To use them, name the folder above: RAW={raw.parent}.")
    if tree.skipped:
        names = in_words(list(dict.fromkeys(path.rpartition("/")[2] for path in tree.skipped)))
        data.messages.append(f"{len(tree.skipped):,} hidden or system files and folders are skipped: {names}.")
    return data


def likely_folder(raw: Path) -> Path | None:
    """Returns the folder that was meant where a raw folder has no classes: one above, beside images, or one below.

    The classes may lie in a split, whose folder is returned then.
    """
    if any(map(is_image_name, _Tree(raw).entries("")[1])):  # a class folder, most likely
        with suppress(OSError):  # a folder above may not be listed
            return next((path for path in raw.resolve().parents[:2] if _Tree(path).count_classes("") > 1), None)
    tree, folders = _Tree(raw), [""]
    for _ in range(3):  # levels
        folders = [path for folder in folders for path in _join(folder, tree.entries(folder)[0])][:MOST_FOLDERS]
        best = max(folders, key=tree.count_classes, default="")
        if tree.count_classes(best) > 1:
            return (raw / best).parent if part_of((raw / best).name) else raw / best
    return None


def _other_parts(raw: Path) -> list[str]:
    """Returns the folders beside a raw folder that hold other parts of a split, with class folders like its own."""
    with suppress(OSError):  # the folder above may not be listed
        names = _Tree(raw.parent).entries("")[0]
        names = [name for name in names if part_of(name) and part_of(name) != part_of(raw.name)]
        return [name for name in names if has_class_folders(raw.parent / name)]
    return []


def _join(folder: str, names: Sequence[str]) -> list[str]:
    return [f"{folder}/{name}" for name in names] if folder else list(names)


def _find_parts(tree: "_Tree", place: str) -> dict[str, str]:
    """Returns the folders that are parts of a split, with their parts; empty if the folders there are classes."""
    folders = tree.entries(place)[0]
    parts = {name: part for name in folders if (part := part_of(name))}
    if len(set(parts.values())) < 2:
        return {}
    training = [path for path in _join(place, [*parts]) if part_of(path.rpartition("/")[2]) == "train"]
    if any(tree.entries(tree.descend(path, "train")[0])[0] for path in training):
        return parts
    if len(parts) < len(folders):  # `train`, `bus` and `test` may be classes
        return {}
    raise UserError(
        f"{tree.root / place} has the folders {in_words(folders)}, which name a split, but no training folder with "
        "class folders below: sort the images into train/<class>/, or name a table of their labels (RAW=labels.csv)."
    )


class _Tree:
    """A raw folder that is read once, without what programs left in it.

    Attributes:
        root: The folder.
        skipped: Paths of the hidden and system entries.
        deeper: How many files lie in each folder below a class folder.
    """

    def __init__(self, root: Path):
        self.root, self.skipped, self.deeper = root, dict[str, None](), dict[str, int]()
        self._entries: dict[str, tuple[list[str], list[str]]] = {}
        self._unreadable: set[str] = set()

    def entries(self, relpath: str) -> tuple[list[str], list[str]]:
        """Returns the names of the folders and of the files in a folder, sorted; none where it may not be read.

        Raises:
            OSError: The root may not be read.
        """
        if relpath not in self._entries:
            folders: list[str] = []
            files: list[str] = []
            try:
                with os.scandir(self.root / relpath) as found:
                    for entry in found:
                        is_folder = _is_folder(entry)
                        if is_system_entry(entry.name, is_folder) or (not relpath and entry.name.startswith(".")):
                            self.skipped[f"{relpath}/{entry.name}"] = None
                        else:
                            (folders if is_folder else files).append(entry.name)
            except OSError:
                if not relpath:
                    raise
                self._unreadable.add(relpath)
            self._entries[relpath] = (sorted(folders), sorted(files))
        return self._entries[relpath]

    def count_classes(self, relpath: str) -> int:
        """Returns how many folders in a folder hold images, as class folders do; at most `MOST_FOLDERS` are opened."""
        folders = _join(relpath, self.entries(relpath)[0][:MOST_FOLDERS])
        return sum(any(map(is_image_name, self.entries(folder)[1])) for folder in folders)

    def descend(self, relpath: str, part: str = "") -> tuple[str, list[str]]:
        """Follows folders that hold nothing but one folder with folders, down to the class folders.

        Args:
            relpath: Where to begin.
            part: If not empty, only folders that tell this part are followed, as in `training_set/training_set/cats`.

        Returns:
            The folder of the class folders, and the files that were passed.
        """
        passed: list[str] = []
        seen = {self._identity(relpath)}
        while True:
            folders, files = self.entries(relpath)
            inner = _join(relpath, folders)[0] if len(folders) == 1 else relpath
            inner_folders, inner_files = self.entries(inner)
            is_class = not inner_folders or (len(inner_folders) == 1 and any(map(is_image_name, inner_files)))
            if self._identity(inner) in seen or is_class or (part and part_of(folders[0]) != part):
                return relpath, passed
            passed += _join(relpath, files)
            relpath = inner
            seen.add(self._identity(inner))

    def walk(self, class_folder: str, part: str) -> list[RawFile]:
        """Returns the files of a class, those in folders below included. A folder that is linked twice counts once."""
        category, files = class_name(class_folder.rpartition("/")[2]), list[RawFile]()
        waiting, links, seen = [class_folder], list[str](), {self._identity("")}
        while waiting or links:
            folder = waiting.pop() if waiting else links.pop()  # so that a folder counts rather than a link to it
            identity, reason = self._identity(folder), self.why_empty(folder)
            if identity in seen - {None}:
                reason = "a link to a folder that was read already"
            elif folder == class_folder:
                reason = reason.replace("unreadable", "unreadable class")
            seen.add(identity)
            if reason:
                files.append(RawFile(folder, category, part, reason))
                continue
            folders, names = self.entries(folder)
            files += [RawFile(f"{folder}/{name}", category, part) for name in names]
            if folder != class_folder and names:
                self.deeper[folder] = len(names)
            for path in _join(folder, folders):
                (links if (self.root / path).is_symlink() else waiting).append(path)
        return files

    def why_empty(self, relpath: str) -> str:
        """Returns why there is nothing in a folder; empty if there is something."""
        if any(self.entries(relpath)):
            return ""
        return "unreadable folder" if relpath in self._unreadable else "a folder without files"

    def _identity(self, relpath: str) -> tuple[int, int] | None:
        """Returns device and number of a folder, which links to it share; None where it cannot be told."""
        try:
            status = (self.root / relpath).stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to a place that may not be entered
        return False
