import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

import auxiliary as aux
from animals10.demo import predict_file, titled_models
from animals10.files import REPOSITORY

pytest.importorskip("nicegui", reason="the demo page is not tested: run `make extras`")


@pytest.fixture
def served(prepared):
    """The address of the page over two models, as a person starts it."""
    tiny = aux.CNN((4,), (4,), (4,), (0.0,))
    for name, epochs in (("untrained", 0), ("trained", 25)):
        aux.train(prepared, aux.Experiment(name, tiny, aux.Training(1e-2, epochs=epochs, patience=25)))
    environment = os.environ | {"ANIMALS10_ROOT": str(prepared.root), "ANIMALS10_PROFILE": "full"}
    environment = {name: text for name, text in environment.items() if "PYTEST" not in name}  # nicegui obeys it
    command = [sys.executable, REPOSITORY / "scripts" / "demo.py"]
    # If tests run in the background, all processes that they start may ignore the signal of Ctrl-C.
    options = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **options) as process:
        yield process.stdout.readline().partition(" ")[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_models_are_offered_by_validation_accuracy(tmp_path):
    settings = aux.Settings(root=tmp_path, raw=tmp_path)
    with pytest.raises(aux.UserError, match="There are no models in"):
        titled_models(settings)
    row = {"epochs": 15, "learning_rate": 1e-3, "n_test": 5, "dataset": "mini", "weights": "none"}
    found = (("a", 0.5, 0.9), ("b", 0.8, 0.6), ("b", 0.7, 0.7), ("c", None, 1.0), ("a", 0.9, 0.9))
    for second, (model_id, acc_val, accuracy) in enumerate(found):
        folder = settings.models / f"{model_id}-20260101T12000{second}-aa"
        folder.mkdir(parents=True)
        facts = row | {"model_id": model_id, "acc_val": acc_val, "accuracy": accuracy, "repetition": second}
        facts["epochs_cap"] = 3 if second in (1, 2, 4) else None  # trials, as most runs of the sample are
        (folder / "run.json").write_text(json.dumps({"row": facts}))
    titles = list(titled_models(settings))
    assert [title.split(":")[0] for title in titles] == [
        "b, repetition 1, capped at 3 epochs",
        "b, repetition 2, capped at 3 epochs",
        "a, repetition 0",
        "a, repetition 4, capped at 3 epochs",
        "c",
    ]
    assert "validation accuracy 80.0 %, test accuracy 60.0 % (5 images of mini)" in titles[0]
    assert "c: not trained, test accuracy 100.0 %" in titles[4]


def test_a_model_that_is_missing_is_marked_and_said(prepared):
    tiny = aux.CNN((4,), (4,), (4,), (0.0,))
    gone, there = aux.train_all(
        prepared, [aux.Experiment(name, tiny, aux.Training(1e-2, 1)) for name in ("gone", "there")]
    )
    gone.file("model.keras").unlink()
    first, last = titled_models(prepared).items()
    assert first[0].startswith("there: ") and last[0].endswith(", its model is missing")
    top, _, _, message = predict_file(prepared.raw / "red" / "red 00.jpeg", "a", last[1], with_grad_cam=False)
    assert top == [] and "model.keras is missing" in message and there.path


def test_a_visitor_drops_images_and_chooses_a_model(served, browser, draw, tmp_path):
    assert served.startswith("http://127.0.0.1:")
    browser.get(served)
    wait = WebDriverWait(browser, 30)

    def text(selector):
        return "".join(element.text for element in browser.find_elements(By.CSS_SELECTOR, selector))

    def upload(path: Path):
        wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "input[type=file]"))
        browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(path))

    # An example is classified by one click, and the result is in view.
    browser.set_window_size(1400, 900)
    wait.until(lambda _: len(browser.find_elements(By.CSS_SELECTOR, "#examples button")) == 10)
    example = browser.find_element(By.CSS_SELECTOR, "#examples button[aria-label='drawing: cat']")
    example.send_keys(Keys.ENTER)
    wait.until(lambda _: len(browser.find_elements(By.CSS_SELECTOR, "#images img")) == 2)
    (choices, result), height = browser.find_elements(By.CSS_SELECTOR, "#page > *"), browser.get_window_size()["height"]
    assert result.rect["y"] + result.rect["height"] <= height and result.rect["y"] < 100
    assert result.rect["x"] > choices.rect["x"] + choices.rect["width"] and result.rect["width"] > 700
    example_classes = text("#classes")
    upload(draw(tmp_path / "a.png", (200, 40, 40), (80, 60)))
    wait.until(lambda _: text("#classes") != example_classes and text("#classes").startswith("red: "))
    width = "return document.querySelector('#images img')?.naturalWidth"
    wait.until(lambda _: browser.execute_script(width) == 80)
    before = text("#classes")
    body = browser.find_element(By.TAG_NAME, "body")
    assert "trained: validation" in body.text and "untrained: " not in body.text  # the best one is chosen
    browser.find_element(By.CSS_SELECTOR, ".q-select").click()
    wait.until(lambda _: "untrained: " in text(".q-menu"))
    options = browser.find_elements(By.CSS_SELECTOR, ".q-menu .q-item")
    next(option for option in options if "untrained" in option.text).click()
    wait.until(lambda _: text("#classes") not in ("", before))
    broken = tmp_path / "letter.jpg"
    broken.write_text("not an image")
    upload(broken)
    wait.until(lambda _: "letter.jpg cannot be used: not an image in a known format" in text("#message"))
    assert not text("#classes")
    large = tmp_path / "large.png"
    large.write_bytes(b"0" * 21_000_000)
    upload(large)
    wait.until(lambda _: "larger than 20 MB" in text("#message"))
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    asked = [url for url in browser.execute_script(script) if not url.startswith(("data:", "blob:"))]
    assert asked and all(url.startswith(served) for url in asked)  # nothing is requested from the network
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
