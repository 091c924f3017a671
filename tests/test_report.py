import json
import re

import pandas as pd
import pytest
import vl_convert
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

import auxiliary as aux
from animals10.csv_append import append_row
from animals10.readme import repository_settings
from animals10.report import collect, render, write_report
from animals10.report_charts import VEGA_LITE, at_least_a_decade, cost_chart, looks_of
from animals10.report_runs import run_details
from animals10.results import RESULT_COLUMNS
from animals10.runs import EFFICIENCY


@pytest.fixture
def workspace(settings):
    """Three runs: one that was published, too, one that was not, and one whose folder is gone."""
    settings = settings.model_copy(update={"image_size": 224, "max_epochs": 1})
    aux.resize_images(settings, aux.scan_images(settings))
    tiny = aux.CNN((2,), (16,), (4,), (0.1,))
    published = aux.train(settings, aux.Experiment("conv4dense2", tiny, aux.Training(7e-4, epochs=25)))
    own = aux.Training(1e-2, epochs=1, augmentation=aux.Augmentation(vertical_flip=False))
    aux.train(settings, aux.Experiment("own", tiny, own))
    gone = published.row | {"model_id": "gone", "run_id": "gone-1", "time": "2026-01-01 00:00:00"}
    (settings.data / "processed-overview.csv").unlink()  # its classes are not the study's: no published run would show
    append_row(settings.results, gone | {"accuracy": 1, "acc_val": 0, "dataset": "other"}, RESULT_COLUMNS)
    return settings


def test_a_reader_sorts_filters_and_opens_runs(workspace, browser, tmp_path):
    page = tmp_path / "report.html"
    page.write_text(render(workspace), encoding="utf-8")
    browser.get(page.as_uri())
    wait = WebDriverWait(browser, 20)

    def find(selector):
        return browser.find_elements(By.CSS_SELECTOR, selector)

    def runs(number=""):
        return [cell.text for cell in find(f"section.runs{number} tbody th")]

    wait.until(lambda _: find("html[data-ready]"))
    # The title is the data set's, and runs that the catalogue does not hold have a heading of their own.
    assert browser.title == find("h1")[0].text == "raw: runs and results" and find("html[lang=en]")
    assert [heading.text for heading in find("section.runs h2")] == ["Runs of your own", "Runs of the study"]
    own, study = (f":nth-of-type({number})" for number in (1, 2))

    # Measured runs by validation accuracy, whatever their test accuracy; filters hide those that are not measured, and
    # other data than the largest test set's (or, of two that are equal, the one with more runs).
    choice = Select(find("#filter-dataset")[0])
    assert [option.text for option in choice.options] == ["all", "other", "raw"]
    assert choice.first_selected_option.text == "raw" and runs(own) == ["own"]
    assert runs(study) == ["conv4dense2"]
    choice.select_by_visible_text("all")
    assert runs(own) == ["own", "gone"]
    assert find("table.runs thead th:nth-child(2)[aria-sort=descending]")
    row = next(row for row in find("table.runs tbody tr") if row.text.startswith("conv4dense2"))
    assert "0.615" in row.text and "not compared: measured on raw" in row.text
    bar = row.find_element(By.CSS_SELECTOR, ".bar")
    assert "95 % interval" in bar.get_attribute("aria-label") and "published 0.615" in bar.get_attribute("aria-label")

    # Sorted by the keyboard, up and down, both tables alike.
    sort = find("table.runs thead th:nth-child(1) .dt-column-order")[0]
    for order, expected in {"ascending": ["gone", "own"], "descending": ["own", "gone"]}.items():
        sort.send_keys(Keys.ENTER)
        wait.until(lambda _, order=order: len(find(f"table.runs thead th:nth-child(1)[aria-sort={order}]")) == 2)
        assert runs(own) == expected

    # Filtered, and the charts with the table.
    browser.execute_script("document.getElementById('costs').scrollIntoView()")
    points = "#costs .chart[data-chart=params] .layer_3_marks path"
    wait.until(lambda _: len(find(points)) == 3)
    choice.select_by_visible_text("other")
    assert runs(own) == ["gone"] and "No run fits" in find(f"section.runs{study}")[0].text
    wait.until(lambda _: len(find(points)) == 1)
    Select(find("#filter-measured")[0]).select_by_visible_text("all")
    Select(find("#filter-notebook")[0]).select_by_visible_text("03")
    Select(find("#filter-backbone")[0]).select_by_visible_text("ResNet50V2")
    assert runs(study) and all(name.startswith("resnet") for name in runs(study))  # not measured, so on no data set
    for name in ("notebook", "backbone", "dataset"):  # and back
        Select(find(f"#filter-{name}")[0]).select_by_visible_text("all")

    # A run opens, shows all that is stored, and closes.
    link = next(link for link in find("table.runs tbody a") if link.text == "own")
    link.send_keys(Keys.ENTER)
    wait.until(lambda _: len(find("#view[open] .chart svg")) == 5)
    view = find("#view")[0]
    headings = [heading.text for heading in view.find_elements(By.TAG_NAME, "h3")]
    expected = ["Learning curves", "Calibration", "Confusion matrix", "Classification report"]
    assert headings[:4] == expected and "Network" in headings
    assert "learning rate\n0.01" in view.text and "pool sizes\n16" in view.text and "brightness 0.1," in view.text
    assert browser.current_url.endswith(link.get_attribute("hash"))
    counts = [mark.text for mark in find("#view [data-chart=confusion] .mark-text.role-mark text")]
    assert sum(map(int, counts)) == 5  # test images
    counts = [mark.text for mark in find("#view [data-chart=reliability] .mark-text.role-mark text")]
    assert sum(map(int, counts)) == 5 and "as trained: 0." in find("#view .calibration p")[0].text
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait.until(lambda _: not find("#view[open]"))
    assert "#" not in browser.current_url and browser.switch_to.active_element == link

    # A link leads to a run; one without a folder says so.
    browser.get(page.as_uri() + "#gone-1")
    wait.until(lambda _: find("#view[open] h2"))
    assert "gone" in find("#view h2")[0].text and "is missing" in find("#view")[0].text
    assert not find("#view .chart") and "learning rate" in find("#view")[0].text

    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


@pytest.fixture
def opened(browser, tmp_path):
    """Returns a function that opens a report at an address, and returns a function that finds elements in it."""

    def _opened(settings, address="", name="report.html"):
        page = tmp_path / name
        if not page.exists():
            page.write_text(render(settings), encoding="utf-8")
        browser.get("about:blank")  # else an address that differs in its hash alone loads nothing
        browser.get(page.as_uri() + address)
        WebDriverWait(browser, 20).until(lambda _: browser.find_elements(By.CSS_SELECTOR, "html[data-ready]"))
        return lambda selector: browser.find_elements(By.CSS_SELECTOR, selector)

    return _opened


def test_two_runs_are_ticked_and_compared(workspace, browser, opened):
    find, wait = opened(workspace), WebDriverWait(browser, 20)
    for name in ("conv4dense2", "own"):
        (box,) = find(f"table.runs input[aria-label^='compare {name}']")
        box.send_keys(Keys.SPACE)
    assert not find("#view[open]")  # a tick does not open the run
    (bar,) = find("#compare")
    assert "conv4dense2, capped at 1 epoch and own" in bar.text
    bar.find_element(By.TAG_NAME, "button").click()
    wait.until(lambda _: len(find("#view[open] .chart svg")) == 2)

    # The paired test is that of `compare_runs`.
    runs = [aux.Run(name, next(workspace.models.glob(f"{name}-*"))) for name in ("conv4dense2", "own")]
    expected, predictions = aux.compare_runs(*runs), [run.predictions for run in runs]
    both = sum(
        (predictions[0].category == predictions[0].predicted) & (predictions[1].category == predictions[1].predicted)
    )
    table = [int(cell.text) for cell in find("#paired-test td")]
    assert table[:3] == [both, expected["only_first"], expected["only_second"]] and sum(table) == 5
    assert f"p = {expected['p_value']:.3f}" in find("#paired-test")[0].text

    # What differs is there, what is equal is folded; metrics per class; the curves of both in one chart.
    differences = {row.text.partition("\n")[0] for row in find("#differences tbody tr")}
    assert any("learning rate 0.0007 0.01" in line for line in differences)
    assert any("maximum epochs 25 1" in line for line in differences)
    assert not any("filters" in line for line in differences)
    (equal,) = find("#differences details dl")
    assert "filters" in equal.get_property("textContent") and not equal.is_displayed()
    report = aux.classification_reports(runs[0]).droplevel(0, axis=1)
    row = next(row for row in find("#per-class tr") if row.text.startswith("blue "))
    assert row.text.split()[1] == f"{report.loc['blue', 'recall']:.3f}"
    points = find("#view [data-chart=accuracy-of-two] svg .mark-symbol.role-mark path")
    assert len({point.get_attribute("fill") for point in points}) == 2  # a colour for each run

    # The address leads there again; on other test images, the page says why there is no test.
    address = browser.current_url.partition("#")[2]
    find = opened(workspace, f"#{address}")
    wait.until(lambda _: find("#view[open] #paired-test"))
    run = next(workspace.models.glob("own-*"))
    predictions = aux.read_table(run / "predictions.csv")
    aux.write_table(predictions.iloc[1:], run / "predictions.csv")
    find = opened(workspace, f"#{address}", "other.html")
    assert "different test images" in find("#paired-test")[0].text and not find("#paired-test td")
    (run / "predictions.csv").unlink()
    find = opened(workspace, f"#{address}", "none.html")
    assert "the predictions of own are not stored" in find("#paired-test")[0].text
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_address_keeps_search_filters_and_order(workspace, browser, opened):
    find = opened(workspace)
    assert "?" not in browser.current_url
    Select(find("#filter-dataset")[0]).select_by_visible_text("all")
    find("#filters [name=search]")[0].send_keys("n")
    sort = "table.runs thead th[data-name=accuracy]"
    find(f"{sort} .dt-column-order")[0].send_keys(Keys.ENTER)
    before, address = [row.text for row in find("table.runs tbody tr")], browser.current_url
    assert len(before) == 3 and find(f"{sort}[aria-sort=ascending]")
    find = opened(workspace, "?" + address.partition("?")[2])
    assert [row.text for row in find("table.runs tbody tr")] == before and find(f"{sort}[aria-sort=ascending]")
    assert find("#filters [name=search]")[0].get_property("value") == "n"
    find("#filters [type=reset]")[0].click()
    WebDriverWait(browser, 5).until(lambda _: "?" not in browser.current_url)
    # What a link asks for and the page lacks is ignored.
    find = opened(workspace, "?dataset=nowhere&sort=nothing&constructor=1")
    assert Select(find("#filter-dataset")[0]).first_selected_option.text == "raw"
    assert len(find("table.runs tbody th")) == 2 and "?" not in browser.current_url


def test_on_a_phone_each_run_is_a_card(workspace, browser, opened):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    find = opened(workspace, "?dataset=")
    script = "return [innerWidth, document.documentElement.scrollWidth]"
    assert browser.execute_script(script) == [390, 390]
    for card in find("table.runs tbody tr"):
        for part in (".bar", ".accuracy small", "a", "input", ".validation"):
            box = card.find_element(By.CSS_SELECTOR, part).rect
            assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["width"] > 10, part
    names = [row.text for row in find("table.runs tbody th")]
    Select(find("#filters [name=direction]")[0]).select_by_visible_text("lowest first")
    assert [row.text for row in find("table.runs tbody th")] == [names[1], names[0], names[2]]
    browser.get(browser.current_url.partition("?")[0] + "#gone-1")
    WebDriverWait(browser, 20).until(lambda _: find("#view[open] h2"))
    assert browser.execute_script(script) == [390, 390]


def test_all_runs_and_charts_are_printed(workspace, browser, opened):
    find = opened(workspace, "?search=own")
    assert len(find("table.runs tbody th")) == 1
    seen = """
        matchMedia("print").addEventListener("change", media => { if (media.matches) printed = [
            document.querySelectorAll("table.runs tbody th").length,
            [...document.querySelectorAll("#paper .chart")].map(box => box.querySelectorAll("svg path").length),
            document.querySelectorAll("details:not([open])").length]; });"""
    browser.execute_script(seen)
    assert browser.print_page()
    rows, marks, folded = browser.execute_script("return printed")
    # Three measured runs and 41 others; two charts of costs, then two curves and a matrix of each run that has them.
    assert rows == 3 + 41 and len(marks) == 2 + 2 * 3 and all(marks) and folded == 0
    assert len(find("table.runs tbody th")) == 1 and not find("#paper svg") and find("details:not([open])")
    assert browser.current_url.endswith("?search=own")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_each_run_of_the_repository_opens_with_its_curves_and_matrix():
    settings = repository_settings()
    table = collect(settings)
    measured = table[table.measured].astype(object).where(table[table.measured].notna(), None).to_dict("records")
    for row in measured:
        found = run_details(settings, row, with_images=False)
        assert found["matrix"] and found["correct"] and len(found["history"]) == row["epochs_run"], row["label"]


def test_images_only_if_asked_and_one_clear_line_for_what_cannot_be_read(workspace):
    assert "data:image/jpeg" not in render(workspace)
    assert "data:image/jpeg" in render(workspace, with_images=True)
    folder = next(workspace.models.glob("own-*"))
    (folder / "predictions.csv").unlink()
    assert "predictions.csv is missing" in render(workspace)
    (folder / "history.csv").write_text("", encoding="utf-8")
    with pytest.raises(aux.UserError, match=r"own-.*history.csv is not a csv table"):
        render(workspace)
    (folder / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(aux.UserError, match=r"own-.* cannot be read \(KeyError: 'spec'\)"):
        render(workspace)
    (folder / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(aux.UserError, match=r"own-.*run.json is damaged \(JSONDecodeError"):
        render(workspace)
    aux.write_table(aux.read_table(workspace.results).drop(columns="repetition"), workspace.results)
    with pytest.raises(aux.UserError, match="lacks the columns repetition"):
        render(workspace)


@pytest.fixture
def row():
    """A row of results.csv on all of Animals-10."""
    row = dict.fromkeys(RESULT_COLUMNS, 1) | {"dataset": "animals10", "weights": "none", "image_size": 224}
    row |= {"model_id": "own", "run_id": "a", "time": "2026-01-01", "learning_rate": 0.1, "epochs_cap": None}
    return row | {"accuracy": 0.62, "accuracy_low": 0.6, "accuracy_high": 0.64, "n_test": 2597, "split": "grouped"}


def test_only_the_latest_run_is_compared_with_the_published_one(tmp_path, row):
    settings = aux.Settings(root=tmp_path, raw=tmp_path)
    row |= {"model_id": "conv4dense2", "learning_rate": 7e-4, "epochs": 25}
    for run_id, time in {"a": "2026-01-02", "b": "2026-01-01"}.items():
        append_row(settings.results, row | {"run_id": run_id, "time": time}, RESULT_COLUMNS)
    append_row(settings.results, row | {"run_id": "c", "model_id": "</script><b>", "repetition": 3}, RESULT_COLUMNS)
    table = collect(settings)
    found = table[table.measured].set_index("run_id").agreement.to_dict()
    later = "not compared: another run counts"
    assert found == {"a": "not significantly different", "b": later, "c": "no published run"}
    assert len(table) == 42 + 2 and table.label.is_unique
    page = render(settings)
    assert "</script><b>" not in page and "&lt;/script&gt;&lt;b&gt;" in page


def test_the_best_run_is_chosen_by_validation(tmp_path, row):
    settings = aux.Settings(root=tmp_path, raw=tmp_path)
    values = {"a": (0.6, 0.9), "b": (0.8, 0.5), "c": (None, 1.0), "d": (0.7, 0.7)}  # validation and test accuracy
    for run_id, (acc_val, accuracy) in values.items():
        new = {"run_id": run_id, "model_id": f"own_{run_id}", "acc_val": acc_val, "accuracy": accuracy}
        append_row(settings.results, row | new, RESULT_COLUMNS)
    table = collect(settings)
    assert list(table.run_id[:4]) == ["b", "d", "a", "c"] and not table.measured[4:].any()
    assert list(table[4:].acc_val_published.dropna()) == sorted(table.acc_val_published.dropna(), reverse=True)
    page = " ".join(render(settings).split())
    assert '<a href="#b">own_b</a> has the highest validation accuracy, 0.800, and a test accuracy of 0.500' in page


def test_a_run_in_study_is_shown_without_model_and_images(tmp_path, row):
    settings, folder = aux.Settings(root=tmp_path, raw=tmp_path), tmp_path / "study" / "own-a"
    folder.mkdir(parents=True)
    spec = {"model": {"type": "CNN", "filters": [8, 4]}, "training": {}, "settings": {}}
    (folder / "run.json").write_text(json.dumps({"spec": spec, "row": row, "class_names": ["cat", "cow"]}))
    epochs = {name: [0.5, 0.25] for name in ("accuracy", "loss", "val_accuracy", "val_loss")}
    aux.write_table(pd.DataFrame({"epoch": [1, 2]} | epochs), folder / "history.csv")
    images = {"relpath": ["cat/1.jpg", "cow/2.jpg"], "category": ["cat", "cow"], "predicted": ["cat", "cat"]}
    images |= {"confidence": [0.75, 0.625]}
    pd.DataFrame(images).to_csv(folder / "predictions.csv.gz", index=False)
    found = run_details(settings, row | {"measured": True}, with_images=True)
    assert found["notes"] == [] and found["facts"]["Network"]["filters"] == "8 4"
    assert [epoch["loss"] for epoch in found["history"]] == [0.5, 0.25]
    assert [(one["relpath"], one["image"]) for one in found["errors"]] == [("cow/2.jpg", "")]
    assert [(cell["truth"], cell["predicted"], cell["count"]) for cell in found["matrix"]][:2] == [
        ("cat", "cat", 1),
        ("cow", "cat", 1),
    ]
    assert found["report"][0] | {"precision": 0.5, "recall": 1} == found["report"][0]


def test_data_set_split_and_cap_tell_runs_apart(tmp_path, row):
    settings = aux.Settings(root=tmp_path, raw=tmp_path)
    row |= {"model_id": "mobnet2_small", "weights": "a", "data_share": "25,949 of 26,179"}
    row |= {"learning_rate": 7e-4, "epochs": 15, "repetition": 1, "corrections": ""}
    found = {"a": {}, "b": {"split": "published", "acc_val": 0.5}, "c": {"repetition": 2, "epochs_cap": 3}}
    found |= {"d": {"dataset": "mini", "data_share": "330 of 26,179", "n_test": 33}, "e": {"weights": "random"}}
    corrected = {"data_share": "", "n_test": 33, "corrections": "2 excluded, 1 relabelled (1a2b3c4d)"}
    found |= {"f": {"dataset": "mini-corrected"} | corrected}
    for run_id, values in found.items():
        append_row(settings.results, row | {"run_id": run_id} | values, RESULT_COLUMNS)
    table = collect(settings)
    table = table[table.measured].set_index("run_id")
    full = "animals10 (25,949 of 26,179 files), "
    small = "mini (330 of 26,179 files), grouped split"
    expected = {"a": f"{full}grouped split", "b": f"{full}published split", "d": small}
    expected |= {"c": f"{full}grouped split, maximum epochs capped", "e": f"{full}grouped split, random weights"}
    expected |= {"f": "mini-corrected (labels: 2 excluded, 1 relabelled (1a2b3c4d)), grouped split"}
    assert table.setting.to_dict() == expected
    assert table.label["a"] == "mobnet2_small, repetition 1, weights a, animals10, grouped split"
    assert table.label["b"] == "mobnet2_small, repetition 1, weights a, animals10, published split"
    assert table.label["c"] == "mobnet2_small, repetition 2, capped at 3 epochs"
    assert table.short_label["b"] == "mobnet2_small" and table.short_label["c"] == "mobnet2_small, repetition 2"
    page = render(settings)
    assert "<option selected>animals10</option>" in page and '<span class="tag">capped at 3</span>' in page
    assert "on 2,597 test images of animals10 (25,949 of 26,179 files), published split" in page
    assert re.findall("<li><b>(.*?)</b>: (.) run", page)[0] == (f"{full}grouped split", "1")


def test_a_page_of_ones_own_is_not_replaced(tmp_path, row, capsys):
    settings, page = aux.Settings(root=tmp_path, raw=tmp_path), tmp_path / "report.html"
    append_row(settings.results, row, RESULT_COLUMNS)
    for _ in range(2):
        write_report(settings, page)
    page.write_text("<!doctype html><title>My animals</title>")
    with pytest.raises(aux.UserError, match=r"report\.html was not written by make report: move it away"):
        write_report(settings, page)
    assert "My animals" in page.read_text()


def test_what_the_study_lacks_is_said_with_its_reason(tmp_path, row):
    settings = aux.Settings(root=tmp_path, raw=tmp_path)
    append_row(settings.results, row, RESULT_COLUMNS)
    reason = "not measured: their ImageNet weights could not be had"
    assert reason not in render(settings)  # nobody's own runs
    (tmp_path / "study").mkdir()
    assert f"ResNet50V2 and EfficientNetV2S are {reason}" in render(settings)


def test_efficiency_is_shown_once_it_was_measured(tmp_path, row):
    settings = aux.Settings(root=tmp_path, raw=tmp_path)
    append_row(settings.results, row, RESULT_COLUMNS)
    assert 'data-chart="predict_ms"' not in render(settings)
    found = dict(zip(EFFICIENCY, (9.5, 300.25, 40.125, 20.5), strict=True))
    file = settings.models / "own-a" / "efficiency.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(found | {"device": "CPU"}), encoding="utf-8")
    table = collect(settings)
    assert table[table.measured][[*found]].to_dict("records") == [found]
    page = render(settings)
    assert 'data-chart="predict_ms"' in page and 'data-chart="multiply_adds"' in page and "<dd>20.5</dd>" in page
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(aux.UserError, match=r"own-a/efficiency.json is damaged .*make efficiency"):
        render(settings)


def test_the_pareto_front():
    values = {"a": (1, 0.5), "b": (2, 0.4), "c": (2, 0.6), "d": (3, 0.6), "e": (4, 0.9)}  # a, c and e are on it
    rows = [
        {"run": run, "params": params, "accuracy": accuracy, "low": 0.1, "high": 1, "setting": "s", "backbone": "x"}
        for run, (params, accuracy) in values.items()
    ]
    assert at_least_a_decade([299.7, 299.8]) == pytest.approx([94.8, 948], rel=1e-3)
    assert at_least_a_decade([2, 90]) == [2, 90]
    chart = cost_chart("params", ["x"], [1, 10]).to_dict() | {"datasets": {"rows": rows}, "width": 300}
    drawn = vl_convert.vegalite_to_vega(json.dumps(chart), vl_version=VEGA_LITE)
    svg = vl_convert.vega_to_svg(drawn)
    assert svg.count('stroke-width="1.4"') == 3


def test_no_two_backbones_look_the_same():
    assert len(set(looks_of(["from scratch", *aux.BACKBONES]))) == len(aux.BACKBONES) + 1
