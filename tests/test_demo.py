import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

import auxiliary as aux

pytest.importorskip("nicegui", reason="the demo page is not tested: run `make extras`")


@pytest.fixture
def served(prepared):
    """The address of the page over two models, as a person starts it."""
    tiny = aux.CNN((4,), (4,), (4,), (0.0,))
    for name, epochs in (("untrained", 0), ("trained", 25)):
        aux.train(prepared, name, tiny, learning_rate=1e-2, epochs=epochs, patience=25)
    environment = os.environ | {"ANIMALS10_ROOT": str(prepared.root), "ANIMALS10_PROFILE": "full"}
    environment = {name: text for name, text in environment.items() if "PYTEST" not in name}  # nicegui heeds it
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
        wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "input[type=file]"))
        browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(path))

    upload(draw(tmp_path / "a.png", (200, 40, 40), (80, 60)))
    wait.until(lambda _: text("#classes").startswith("red: "))
    wait.until(lambda _: len(browser.find_elements(By.CSS_SELECTOR, "#pictures img")) == 2)
    assert browser.find_element(By.CSS_SELECTOR, "#pictures img").get_property("naturalWidth") == 80
    before = text("#classes")
    body = browser.find_element(By.TAG_NAME, "body")
    assert "trained: " in body.text and "untrained: " not in body.text  # the most accurate is chosen
    browser.find_element(By.CSS_SELECTOR, ".q-select").click()
    wait.until(lambda _: "untrained: " in text(".q-menu"))
    options = browser.find_elements(By.CSS_SELECTOR, ".q-menu .q-item")
    next(option for option in options if "untrained" in option.text).click()
    wait.until(lambda _: text("#classes") not in ("", before))
    broken = tmp_path / "letter.jpg"
    broken.write_text("no picture at all")
    upload(broken)
    wait.until(lambda _: "letter.jpg cannot be used: not a picture in a known format" in text("#word"))
    assert not text("#classes")
    large = tmp_path / "large.png"
    large.write_bytes(b"0" * 21_000_000)
    upload(large)
    wait.until(lambda _: "larger than 20 MB" in text("#word"))
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    asked = [url for url in browser.execute_script(script) if not url.startswith(("data:", "blob:"))]
    assert asked and all(url.startswith(served) for url in asked)  # nothing is asked of the network
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
