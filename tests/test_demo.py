import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

import auxiliary as aux

pytest.importorskip("gradio", reason="the demo page is not tested: run `make extras`")


@pytest.fixture
def served(prepared):
    """The address of the page over two models, as a person starts it."""
    tiny = aux.CNN((4,), (4,), (4,), (0.0,))
    for name, epochs in (("untrained", 0), ("trained", 25)):
        aux.train(prepared, name, tiny, learning_rate=1e-2, epochs=epochs, patience=25)
    environment = os.environ | {"ANIMALS10_ROOT": str(prepared.root), "ANIMALS10_PROFILE": "full"}
    command = [sys.executable, aux.REPOSITORY / "scripts" / "demo.py"]
    # Where tests run in the background, the signal of Ctrl-C may be ignored by all that they start.
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **heed) as process:
        yield process.stdout.readline().partition(" ")[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_a_person_drops_pictures_and_chooses_a_model(served, browser, draw, tmp_path):
    assert served.startswith("http://127.0.0.1:")
    browser.get(served)
    wait = WebDriverWait(browser, 30)

    def text(selector):
        return "".join(element.text for element in browser.find_elements(By.CSS_SELECTOR, selector))

    def upload(path: Path):
        wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#file input[type=file]"))
        browser.find_element(By.CSS_SELECTOR, "#file input[type=file]").send_keys(str(path))

    def take_away():
        wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#file button[aria-label='Clear']"))
        browser.find_element(By.CSS_SELECTOR, "#file button[aria-label='Clear']").click()

    upload(draw(tmp_path / "a.png", (200, 40, 40), (80, 60)))
    wait.until(lambda _: "red" in text("#label h2"))
    wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#heat img"))
    shown = browser.find_element(By.CSS_SELECTOR, "#shown img")
    assert shown.get_property("naturalWidth") == 80
    model = browser.find_element(By.CSS_SELECTOR, "#model input")
    assert model.get_property("value").startswith("trained: ")  # the most accurate comes first
    model.click()
    wait.until(lambda _: "untrained: " in text("#model ul, ul[role=listbox]"))
    before = text("#label")
    options = browser.find_elements(By.CSS_SELECTOR, "ul[role=listbox] li")
    next(option for option in options if "untrained" in option.text).click()
    wait.until(lambda _: text("#label") != before)
    take_away()
    broken = tmp_path / "letter.jpg"
    broken.write_text("no picture at all")
    upload(broken)
    wait.until(lambda _: "not a picture in a known format" in text("#word"))
    assert not text("#label h2")
    take_away()
    large = tmp_path / "large.png"
    large.write_bytes(b"0" * 21_000_000)
    upload(large)
    wait.until(lambda _: "size" in text("body").lower() and "exceed" in text("body").lower())
    elsewhere = [
        url
        for url in browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        if not url.startswith((served, "data:", "blob:"))
    ]
    assert not elsewhere  # nothing is asked of the network
