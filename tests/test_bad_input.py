"""Folders of good and bad files, invented by hypothesis: every good picture comes out, every bad one is recorded."""

import contextlib
import hashlib
import io
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

import auxiliary as aux

SIZE = 32


def _picture(mode: str, seed: int, size: tuple[int, int] = (23, 17)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype="uint8")
    picture = Image.fromarray(pixels)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype("uint16") * 257)
    if mode == "P, transparent":
        picture = picture.quantize(16)
        picture.info["transparency"] = 3
        return picture
    if mode == "RGBA":
        picture.putalpha(128)
    return picture.convert(mode)


def _encoded(mode: str, form: str, seed: int, **options) -> bytes:
    file = io.BytesIO()
    _picture(mode, seed).save(file, form, **options)
    return file.getvalue()


def _animated(form: str, seed: int) -> bytes:
    return _encoded("RGB", form, seed, save_all=True, append_images=[_picture("RGB", seed + 1)], duration=40)


def _bomb() -> bytes:
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    return file.getvalue()


MODES = {"JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "L", "1", "LA", "RGBA", "P", "P, transparent", "I;16")}
MODES |= {"GIF": ("RGB", "P, transparent"), "WEBP": ("RGB", "RGBA"), "BMP": ("RGB", "L"), "PPM": ("RGB",)}
MODES |= {"TIFF": ("RGB", "CMYK", "I;16")}
GOOD = [(mode, form) for form, modes in MODES.items() for mode in modes]
BOMB = _bomb()


@dataclass(frozen=True)
class File:
    """What lies in a class folder: its name, what to do to it, whether it has to come out (None: as may be)."""

    name: str
    content: bytes
    kind: str = "file"
    good: bool | None = True


SUFFIXES = st.sampled_from([".jpg", ".jpeg", ".png", ".JPG", ".gif", ".txt", "", ".tar.gz"])  # whatever it holds
LETTERS = st.one_of(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), st.sampled_from(" '\",\n\r;.🐶é")
)
LONG = st.sampled_from("xé🐶").map(lambda letter: (letter * 255).encode()[:250].decode(errors="ignore"))


@st.composite
def names(draw) -> str:
    """Draws a name of a file, with everything that a file system takes, of up to 255 bytes."""
    stem = draw(st.one_of(st.text(LETTERS, min_size=1, max_size=12), LONG))
    name = (stem + draw(SUFFIXES)).encode()[:255].decode(errors="ignore")
    return name if name.strip(".") else "dots" + name


@st.composite
def some_file(draw) -> File:
    """Draws a good picture, one that was damaged in some way, or something that is none."""
    name, seed = draw(names()), draw(st.integers(0, 999))
    mode, form = draw(st.sampled_from(GOOD))
    animated = st.sampled_from(["GIF", "WEBP"]).map(lambda form: _animated(form, seed))
    content = draw(st.one_of(st.builds(_encoded, st.just(mode), st.just(form), st.just(seed)), animated))
    damage = draw(st.sampled_from("none none none cut flip zero text folder link dangling bomb float".split()))
    if damage == "cut":
        return File(name, content[: draw(st.integers(0, len(content) - 1))], good=None)
    if damage == "flip":
        flipped = bytearray(content)
        for place in draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=9)):
            flipped[place] ^= draw(st.integers(1, 255))
        return File(name, bytes(flipped), good=None)
    if damage == "float":
        return File(name, _encoded("F", "TIFF", seed), good=False)
    content = {"zero": b"", "text": b"no picture", "bomb": BOMB}.get(damage, content)
    kind = damage if damage in ("folder", "link", "dangling") else "file"
    return File(name, content, kind, good=damage in ("none", "link"))


FOLDERS = st.lists(some_file(), min_size=1, max_size=5, unique_by=lambda file: file.name)


def lay(folder: Path, file: File) -> None:
    """Puts a file where a data set would have it."""
    path = folder / file.name
    if file.kind == "folder":
        path.mkdir()
    elif file.kind == "dangling":
        path.symlink_to(folder / "nowhere")
    elif file.kind == "link":
        target = folder.parent.parent / hashlib.sha256(file.name.encode()).hexdigest()
        target.write_bytes(file.content)
        path.symlink_to(target)
    else:
        path.write_bytes(file.content)


def process(folder: Path, class_name: str, files: list[File]) -> tuple[set[str], set[str]]:
    """Scans and resizes a folder of three classes, checks all that holds whatever the files are.

    Returns:
        The relpaths of what came out and of what was rejected.
    """
    raw = folder / "raw"
    for name in ("first", "second"):  # so that there is something to classify
        (raw / name).mkdir(parents=True)
        (raw / name / "a.png").write_bytes(_encoded("RGB", "PNG", 1))
    (raw / class_name).mkdir(exist_ok=True)
    for file in files:
        lay(raw / class_name, file)
    before = _fingerprint(raw)
    settings = aux.Settings(root=folder / "work", raw=raw, image_size=SIZE)
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        processed = aux.resize_photographs(settings, aux.scan_photographs(settings))
        checks = aux.check_pictures(settings)
    rejected = aux.read_table(settings.data / "rejected.csv")
    assert _fingerprint(raw) == before  # raw photographs are never modified
    done, bad = set(processed.source), set(rejected.relpath)
    assert done | bad == {path.relative_to(raw).as_posix() for path in raw.glob("*/*")} and not done & bad
    assert len(processed) == len(done) and len(rejected) == len(bad) and list(checks.source) == list(processed.source)
    assert rejected.reason.notna().all() and not rejected.reason.str.contains("\n").any()
    assert aux.read_table(settings.data / "processed-overview.csv").equals(processed)
    pictures = [path for path in (settings.data / "processed").rglob("*") if path.is_file()]
    assert {path.relative_to(settings.data / "processed").as_posix() for path in pictures} == set(processed.relpath)
    for path in pictures:
        with Image.open(path) as picture:
            picture.load()
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (SIZE, SIZE))
    return done, bad


def _fingerprint(raw: Path) -> dict:
    return {path: path.read_bytes() if path.is_file() else None for path in raw.rglob("*")}


def try_folder(folder: Path, class_name: str, files: list[File]) -> tuple[int, int]:
    """The property; returns how many files came out and how many were rejected."""
    folder.mkdir(parents=True)
    try:
        done, bad = process(folder, class_name, files)
        for file in files:
            relpath = f"{class_name}/{file.name}"
            assert file.good is not True or relpath in done, relpath
            assert file.good is not False or relpath in bad, relpath
    finally:
        shutil.rmtree(folder)
    return len(done), len(bad)


CLASS_NAMES = names().filter(lambda name: not name.startswith("."))  # which are hidden, and not classes
OPTIONS = {"deadline": None, "database": None, "suppress_health_check": list(hypothesis.HealthCheck)}


@hypothesis.settings(max_examples=60, derandomize=True, **OPTIONS)
@hypothesis.given(CLASS_NAMES, FOLDERS)
def test_good_pictures_come_out_and_bad_ones_are_recorded(class_name, files):
    with tempfile.TemporaryDirectory() as folder:
        try_folder(Path(folder) / "case", class_name, files)


@dataclass
class Tried:
    """Counts of `try_many`."""

    cases: int = 0
    good: int = 0
    bad: int = 0
    faults: tuple[str, ...] = ()

    @property
    def files(self) -> int:
        return self.good + self.bad


def try_many(folder: Path, cases: int, seed: int) -> Tried:
    """Tries as many different folders, for `make soak`; a failing one ends it and is told among the faults."""
    tried = Tried()

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=cases, phases=[hypothesis.Phase.generate], **OPTIONS)
    @hypothesis.given(CLASS_NAMES, FOLDERS)
    def attempt(class_name, files):
        good, bad = try_folder(folder / "case", class_name, files)
        tried.cases, tried.good, tried.bad = tried.cases + 1, tried.good + good, tried.bad + bad

    try:
        attempt()
    except Exception as error:
        tried.faults = (f"{type(error).__name__}: {error}",)
    return tried


def test_a_picture_cut_at_every_length_is_recorded_or_comes_out(tmp_path):
    for mode, form in (("RGB", "JPEG"), ("P", "PNG")):
        whole = _encoded(mode, form, 5)
        files = [File(f"{length:04}.jpg", whole[:length], good=None) for length in range(len(whole))]
        done, bad = process(tmp_path / form, "cut", files)
        assert f"cut/{len(whole) // 2:04}.jpg" in bad and len(bad) > 0.9 * len(files)
        assert len(done) + len(bad) == len(files) + 2


def test_what_may_not_be_read_is_recorded(as_nobody):
    closed, unlisted = as_nobody / "raw" / "closed", as_nobody / "raw" / "no entry"
    for folder in (closed, unlisted):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(_encoded("RGB", "PNG", 1))
    secret = File("secret.png", _encoded("RGB", "PNG", 2), good=False)
    (as_nobody / "raw" / "open").mkdir()
    lay(as_nobody / "raw" / "open", secret)
    (as_nobody / "raw" / "open" / "secret.png").chmod(0)
    for name in ("first", "second", "open"):
        (as_nobody / "raw" / name).mkdir(exist_ok=True)
        (as_nobody / "raw" / name / "a.png").write_bytes(_encoded("RGB", "PNG", 1))
    closed.chmod(0)
    unlisted.chmod(0o400)
    settings = aux.Settings(root=as_nobody / "work", raw=as_nobody / "raw", image_size=SIZE)
    processed = aux.resize_photographs(settings, aux.scan_photographs(settings))
    rejected = aux.read_table(settings.data / "rejected.csv").set_index("relpath").reason.to_dict()
    assert set(processed.category) == {"first", "second", "open"}
    assert rejected == {
        "closed": "unreadable class folder",
        "no entry/a.png": "unreadable: permission denied",
        "open/secret.png": "unreadable: permission denied",
    }
    (as_nobody / "raw").chmod(0)
    with pytest.raises(aux.StudyError, match=r"raw cannot be read: permission denied"):
        aux.scan_photographs(settings)


def test_pictures_of_another_size_are_never_taken_over(settings):
    """A kill before the first table leaves pictures behind whose size no table tells."""
    overview = aux.scan_photographs(settings)
    aux.resize_photographs(settings, overview)
    (settings.data / "processed-overview.csv").unlink()
    other = settings.model_copy(update={"image_size": 48})
    for relpath in aux.resize_photographs(other, overview).relpath:
        with Image.open(settings.data / "processed" / relpath) as picture:
            assert picture.size == (48, 48)
