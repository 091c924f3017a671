"""The site is complete: every link leads somewhere in it, and nothing is requested from elsewhere."""

from html.parser import HTMLParser
from pathlib import PurePosixPath

import nbformat
import pytest
from selenium.webdriver.common.by import By

from animals10 import website
from animals10.files import REPOSITORY, UserError
from animals10.settings import NOTEBOOKS
from animals10.website import markdown_to_html, write_site


class Page(HTMLParser):
    """What a page holds: its anchors, where its links lead, what a browser loads with it, and its images."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.loaded, self.images = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors.add(found.get("id"))
        self.links += [found["href"]] if tag == "a" else []
        self.loaded += [found[name] for name in ("src", "href") if tag != "a" and name in found]
        self.images += [found] if tag == "img" else []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    write_site(folder)
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_all_links_lead_somewhere_in_the_site(site, pages):
    assert {"index.html", "report.html", "docs/usage.html", "data/animals10.html"} <= set(pages)
    reached = set()
    for name, page in pages.items():
        for link in page.links + page.loaded:
            if link.startswith(("https://", "data:")):
                assert link in page.links or link.startswith("data:"), f"{name} loads {link}"
                continue
            target, _, anchor = link.partition("#")
            path = (site / name).parent / target if target else site / name
            assert path.resolve().is_relative_to(site) and path.is_file(), f"{name}: {link}"
            reached.add(path.resolve().relative_to(site).as_posix())
            assert not anchor or anchor in pages[path.resolve().relative_to(site).as_posix()].anchors, f"{name}: {link}"
    assert {*pages, "results.csv", "data/results.svg"} <= reached


def test_the_site_replaces_its_own_pages_alone(site, monkeypatch):
    monkeypatch.setattr(website, "render", lambda *_, **__: f"<meta {website.MARK}>")  # to be quick
    write_site(site)
    before = (site / "report.html").read_text()
    (site / "index.html").write_text("<!doctype html>mine")
    with pytest.raises(UserError, match=r"index\.html was not written by make site: move it away"):
        write_site(site)
    assert (site / "report.html").read_text() == before
    (site / "index.html").unlink()
    for name in ("index.html", "results.csv"):
        (site / name).unlink(missing_ok=True)
    write_site(site)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_there_with_its_stored_outputs(pages, name):
    cells = nbformat.read(REPOSITORY / name, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    figures = [output.metadata["image/png"]["alt"] for output in outputs if "image/png" in output.get("data", {})]
    page = pages[str(PurePosixPath(name).with_suffix(".html"))]
    assert figures and [image["alt"] for image in page.images] == figures
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.images)


def test_links_to_other_files_lead_to_the_repository():
    text = "[a](../animals10/catalogue.py) [b](design.md#layout) [c](#top) [d](../results.csv)"
    inside = '<a href="design.html#layout">b</a> <a href="#top">c</a> <a href="../results.csv">d</a>'
    assert markdown_to_html(text, "docs/usage.md") == f"<p>a {inside}</p>\n"
    outside = '<a href="https://github.com/me/mine/blob/main/animals10/catalogue.py">a</a>'
    assert markdown_to_html(text, "docs/usage.md", "https://github.com/me/mine") == f"<p>{outside} {inside}</p>\n"
    assert markdown_to_html("# A `b`: c, d", "README.md") == '<h1 id="a-b-c-d">A <code>b</code>: c, d</h1>\n'


def test_pages_are_readable_on_a_phone_and_nothing_is_blocked(site, browser):
    browser.set_window_size(500, 900)
    for name in ("index.html", "03-transfer-learning.html", "docs/usage.html"):
        browser.get((site / name).as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), name
        images = browser.find_elements(By.TAG_NAME, "img")
        assert all(image.get_property("naturalWidth") for image in images) and bool(images) == ("docs" not in name)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
