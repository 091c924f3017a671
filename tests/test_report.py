import json

import pytest
import vl_convert
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

import auxiliary as aux
from scripts import report


@pytest.fixture
def workspace(settings):
    """Three runs: one that was published, too, one that was not, and one whose folder is gone."""
    settings = settings.model_copy(update={"image_size": 224, "max_epochs": 1})
    aux.resize_photographs(settings, aux.scan_photographs(settings))
    tiny = aux.CNN((2,), (16,), (4,), (0.1,))
    published = aux.train(settings, "conv4dense2", tiny, learning_rate=7e-4, epochs=25)
    aux.train(settings, "own", tiny, learning_rate=1e-2, epochs=1)
    gone = published.record["row"] | {"model_id": "gone", "run_id": "gone-1", "time": "2026-01-01 00:00:00"}
    (settings.data / "processed-overview.csv").unlink()  # of three classes: beside those no published run is shown
    aux.append_row(settings.results, gone | {"accuracy": 0, "dataset": "other"}, aux.RESULT_COLUMNS)
    return settings


def test_a_reader_sorts_filters_and_opens_runs(workspace, browser, tmp_path):
    page = tmp_path / "report.html"
    page.write_text(report.render(workspace), encoding="utf-8")
    browser.get(page.as_uri())
    wait = WebDriverWait(browser, 20)

    def find(selector):
        return browser.find_elements(By.CSS_SELECTOR, selector)

    def runs():
        return [cell.text for cell in find("#runs tbody th")]

    wait.until(lambda _: find("html[data-ready]"))
    assert browser.title == "Animals-10: runs and results" and find("html[lang=en]") and find("#runs caption")

    # measured runs by accuracy; published ones that are not measured wait behind a filter
    assert set(runs()[:2]) == {"conv4dense2", "own"} and runs()[2:] == ["gone"]
    assert find("#runs thead th:nth-child(2)[aria-sort=descending]")
    row = next(row for row in find("#runs tbody tr") if row.text.startswith("conv4dense2"))
    assert "0.615" in row.text and "not judged: measured on raw" in row.text
    bar = row.find_element(By.CSS_SELECTOR, ".interval")
    assert "95 % interval" in bar.get_attribute("aria-label") and "published 0.615" in bar.get_attribute("aria-label")

    # sorted by the keyboard, up and down
    sort = find("#runs thead th:nth-child(1) .dt-column-order")[0]
    sort.send_keys(Keys.ENTER)
    wait.until(lambda _: find("#runs thead th:nth-child(1)[aria-sort=ascending]"))
    assert runs() == ["conv4dense2", "gone", "own"]
    sort.send_keys(Keys.ENTER)
    wait.until(lambda _: find("#runs thead th:nth-child(1)[aria-sort=descending]"))
    assert runs() == ["own", "gone", "conv4dense2"]

    # filtered, and the charts with the table
    browser.execute_script("document.getElementById('costs').scrollIntoView()")
    points = "#costs .chart[data-chart=params] .layer_3_marks path"
    wait.until(lambda _: len(find(points)) == 3)
    choice = Select(find("#filter-dataset")[0])
    assert [option.text for option in choice.options] == ["all", "other", "raw"]
    choice.select_by_visible_text("other")
    assert runs() == ["gone"]
    wait.until(lambda _: len(find(points)) == 1)
    choice.select_by_visible_text("all")
    Select(find("#filter-measured")[0]).select_by_visible_text("all")
    Select(find("#filter-notebook")[0]).select_by_visible_text("03")
    Select(find("#filter-backbone")[0]).select_by_visible_text("ResNet50V2")
    assert runs() and all(name.startswith("resnet") for name in runs())
    for name in ("notebook", "backbone"):  # and back
        Select(find(f"#filter-{name}")[0]).select_by_visible_text("all")

    # a run opens, shows all that is stored, and closes
    link = next(link for link in find("#runs tbody a") if link.text == "own")
    link.send_keys(Keys.ENTER)
    wait.until(lambda _: len(find("#view[open] .chart svg")) == 3)
    view = find("#view")[0]
    headings = [heading.text for heading in view.find_elements(By.TAG_NAME, "h3")]
    assert headings[:3] == ["Learning curves", "Confusion matrix", "Each class"] and "Network" in headings
    assert "learning rate\n0.01" in view.text and browser.current_url.endswith(link.get_attribute("hash"))
    counts = [mark.text for mark in find("#view [data-chart=confusion] .mark-text.role-mark text")]
    assert sum(map(int, counts)) == 5  # test pictures
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait.until(lambda _: not find("#view[open]"))
    assert "#" not in browser.current_url and browser.switch_to.active_element == link

    # a link leads to a run; one without a folder says so
    browser.get(page.as_uri() + "#gone-1")
    wait.until(lambda _: find("#view[open] h2"))
    assert "gone" in find("#view h2")[0].text and "is not there" in find("#view")[0].text
    assert not find("#view .chart") and "learning rate" in find("#view")[0].text

    browser.set_window_size(500, 900)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_pictures_only_if_asked_and_one_clear_line_for_what_cannot_be_read(workspace):
    assert "data:image/jpeg" not in report.render(workspace)
    assert "data:image/jpeg" in report.render(workspace, pictures=True)
    folder = next((workspace.root / "models").glob("own-*"))
    (folder / "predictions.csv").unlink()
    assert "predictions.csv is missing" in report.render(workspace)
    (folder / "history.csv").write_text("", encoding="utf-8")
    with pytest.raises(aux.StudyError, match=r"own-.*history.csv is no csv table"):
        report.render(workspace)
    (folder / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(aux.StudyError, match=r"own-.* cannot be read \(JSONDecodeError"):
        report.render(workspace)
    aux.write_table(aux.read_table(workspace.results).drop(columns="repetition"), workspace.results)
    with pytest.raises(aux.StudyError, match="lacks the columns repetition"):
        report.render(workspace)


def test_of_repeated_runs_the_latest_is_judged(tmp_path):
    settings = aux.Settings(root=tmp_path, raw=tmp_path)
    row = dict.fromkeys(aux.RESULT_COLUMNS, 1) | {"dataset": "animals10", "weights": "none", "image_size": 224}
    row |= {"model_id": "conv4dense2", "learning_rate": 7e-4, "epochs": 25, "accuracy_low": 0.6, "accuracy_high": 0.7}
    for run_id, time in {"a": "2026-01-02", "b": "2026-01-01"}.items():
        aux.append_row(settings.results, row | {"run_id": run_id, "time": time}, aux.RESULT_COLUMNS)
    foreign = row | {"run_id": "c", "model_id": "</script><b>", "repetition": 3}
    aux.append_row(settings.results, foreign, aux.RESULT_COLUMNS)
    table = report.collect(settings)
    found = table[table.measured].set_index("run_id").verdict.to_dict()
    assert found == {"a": "inside the interval", "b": "not judged: a later run counts", "c": "no published run"}
    assert len(table) == 42 + 2
    page = report.render(settings)
    assert "</script><b>" not in page and "&lt;/script&gt;&lt;b&gt;" in page


def test_what_a_run_costs_is_shown_once_it_was_measured(tmp_path):
    settings = aux.Settings(root=tmp_path, raw=tmp_path)
    row = dict.fromkeys(aux.RESULT_COLUMNS, 1) | {"model_id": "own", "run_id": "a", "time": "2026-01-01"}
    aux.append_row(settings.results, row, aux.RESULT_COLUMNS)
    assert 'data-chart="predict_ms"' not in report.render(settings)
    found = dict(zip(aux.storage.EFFICIENCY, (9.5, 300.25, 40.125, 20.5), strict=True))
    file = settings.root / "models" / "own-a" / "efficiency.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(found | {"device": "CPU"}), encoding="utf-8")
    table = report.collect(settings)
    assert table[table.measured][[*found]].to_dict("records") == [found]
    page = report.render(settings)
    assert 'data-chart="predict_ms"' in page and 'data-chart="multiply_adds"' in page and "<dd>20.5</dd>" in page
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(aux.StudyError, match=r"own-a/efficiency.json is damaged .*make efficiency"):
        report.render(settings)


def test_the_pareto_front():
    values = {"a": (1, 0.5), "b": (2, 0.4), "c": (2, 0.6), "d": (3, 0.6), "e": (4, 0.9)}  # a, c and e are on it
    rows = [
        {"run": run, "params": params, "accuracy": accuracy, "low": 0.1, "high": 1, "setting": "s", "backbone": "x"}
        for run, (params, accuracy) in values.items()
    ]
    assert report.decade([299.7, 299.8]) == pytest.approx([94.8, 948], rel=1e-3) and report.decade([2, 90]) == [2, 90]
    chart = report.cost("params", ["x"], [1, 10]).to_dict() | {"datasets": {"rows": rows}, "width": 300}
    drawn = vl_convert.vegalite_to_vega(json.dumps(chart), vl_version=report.VEGA_LITE)
    svg = vl_convert.vega_to_svg(drawn)
    assert svg.count('stroke-width="1.4"') == 3
