import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver

from animals10 import callbacks, pretrained
from animals10.preprocessing import resize_images, scan_images
from animals10.sample import compose_sample
from animals10.settings import Settings

BROWSER_ARGUMENTS = "--headless=new --disable-gpu --disable-quic --no-first-run --disable-background-networking "
BROWSER_ARGUMENTS += "--disable-component-update --disable-sync --window-size=1400,900"


LONGEST_FIRST = "test_cluster test_reproducible test_training test_notebooks test_feature_cache".split()
LONGEST_FIRST += ["test_own_networks"]


def pytest_collection_modifyitems(items):
    """Puts notebooks and long files first, so that two workers end at about the same time."""

    def order(item):
        name = item.path.stem
        return item.path.suffix != ".ipynb", LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=order)


@pytest.fixture(scope="session", autouse=True)
def sample():
    """The folder of the sample's drawings, which are composed at the first run of the tests."""
    return compose_sample()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setattr(pretrained, "URL", "http://127.0.0.1:9/")  # where nothing listens


@pytest.fixture(autouse=True)
def _checkpoint_after_each_epoch(monkeypatch):
    monkeypatch.setattr(callbacks, "TRAINING_PER_CHECKPOINT", 0)  # else a slow disk decides which epochs have one


@pytest.fixture
def draw():
    """Returns a function that draws an image of one colour with some noise, so that no two have the same bytes."""
    rng = np.random.default_rng(1)

    def _draw(path: Path, colour=(200, 30, 30), size=(40, 30), **options) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(np.array(colour) + rng.normal(0, 8, (size[1], size[0], 3)), 0, 255)
        Image.fromarray(pixels.astype("uint8")).save(path, **options)
        return path

    return _draw


@pytest.fixture
def settings(tmp_path, draw):
    """A workspace of 32-pixel images: 14 red, 20 green and 16 blue ones, easy to tell apart."""
    for name, colour, n in (("red", (200, 40, 40), 14), ("green", (40, 200, 40), 20), ("blue", (40, 40, 200), 16)):
        for index in range(n):
            draw(tmp_path / "raw" / name / f"{name} {index:02}.jpeg", colour)
    return Settings(root=tmp_path / "work", raw=tmp_path / "raw", image_size=32, weights="random")


@pytest.fixture
def small_classes(monkeypatch):
    """Lets tests of the scan do with a few images per class."""
    monkeypatch.setattr("animals10.preprocessing.check_scanned_sizes", lambda settings, overview: None)


@pytest.fixture
def prepared(settings):
    resize_images(settings, scan_images(settings))
    return settings


@pytest.fixture
def as_nobody():
    """A folder of a user without privileges; root runs the test as that user, because root may read everything."""
    if os.name == "nt":
        pytest.skip("permissions of POSIX")
    folder = Path(tempfile.mkdtemp())
    if os.geteuid():
        yield folder
    else:
        folder.chmod(0o777)
        os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(0)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o700)
    shutil.rmtree(folder)


@pytest.fixture
def browser(tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome")
    binary, driver = next(filter(None, map(shutil.which, names)), None), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("no browser here: install Debian's chromium and chromium-driver, or Chrome and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in [*BROWSER_ARGUMENTS.split(), f"--user-data-dir={tmp_path / 'browser'}"]:
        options.add_argument(argument)
    if os.name == "posix" and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chrome has no sandbox for root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as browser:
        yield browser
