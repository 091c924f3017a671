"""The site: the report, the notebooks with their stored outputs, and the documentation, as pages in one folder.

Nothing is executed or trained: a fresh clone is enough. The folder is laid out like the repository. No page requests
anything from the network.
"""

import posixpath
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

from animals10.files import REPOSITORY, atomic_write, display_path, reading, refuse_to_replace, user_facing_os_errors
from animals10.notebooks import read_notebook
from animals10.readme import FIGURE_MARK, README, repository_settings
from animals10.report import MARK, load_template, render
from animals10.settings import NOTEBOOKS

SITE = REPOSITORY / "build" / "site"
# The files that become pages, and what the landing page tells about them. Titles are those of the files.
SOURCES = {
    NOTEBOOKS[0]: "the images, their near-duplicates, and the split",
    NOTEBOOKS[1]: "networks that are trained on these images alone",
    NOTEBOOKS[2]: "classifiers on ImageNet features, and fine-tuning",
    "docs/results.md": "each published run beside the measured one",
    "docs/full-study.md": "what is not measured yet, and how to measure it",
    "data/animals10.md": "origin of the images, missing files, near-duplicates, reference split",
    "docs/usage.md": "commands, settings, experiments of your own",
    "docs/cluster.md": "several runs at a time, on one machine or on many",
    "docs/design.md": "data flow, identity of a run, reproducibility, columns of results.csv",
}
COPIES = {"results.csv": "model_id", "data/results.svg": FIGURE_MARK}  # and what each has among its first bytes
CODE_STYLES = {"light": "vs", "dark": "github-dark"}  # of Pygments


def write_site(folder: Path = SITE, repository_url: str = "") -> None:
    """Writes the site and prints where it is and how large.

    Args:
        folder: The folder to write; pages of an earlier site are replaced.
        repository_url: The address of the repository on GitHub, to which links to its other files lead. Without it they
            are plain text.

    Raises:
        UserError: There are no results, one cannot be read, a file cannot be written, or one of its name is there that
            this function did not write.
    """
    contents = {path: _content(path, repository_url) for path in SOURCES}
    titles = {path: _title(content) for path, content in contents.items()}
    entries = [{"page": _page(path), "title": titles[path], "about": about} for path, about in SOURCES.items()]
    styles = {name: HtmlFormatter(style=style).get_style_defs(".highlight") for name, style in CODE_STYLES.items()}
    with reading(README, "cannot be read"):
        introduction = README.read_text(encoding="utf-8").partition("\n## ")[0]
    contents[README.name] = markdown_to_html(introduction, README.name, repository_url)
    template = load_template("site.html.j2")
    pages = {"report.html": render(repository_settings(), home="index.html")}
    for path, content in contents.items():
        pages[_page(path)] = template.render(
            source=path,
            page=_page(path),
            up="../" * path.count("/"),
            title=_title(content),
            content=content,
            entries=entries,
            code_styles=styles,
            repository_url=repository_url,
        )
    for name, mark in (dict.fromkeys(pages, MARK) | COPIES).items():
        refuse_to_replace(folder / name, mark, "make site")
    for name, text in pages.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    for name in COPIES:
        with reading(REPOSITORY / name, "cannot be read"), user_facing_os_errors(folder / name):
            shutil.copyfile(REPOSITORY / name, folder / name)
    size = sum((folder / name).stat().st_size for name in (*pages, *COPIES))
    print(f"{display_path(folder.resolve())}: {len(pages)} pages, {size / 1e6:.1f} MB; open index.html")


def _page(path: str) -> str:
    """Returns the path in the site of the page that is made from a file."""
    return "index.html" if path == README.name else str(PurePosixPath(path).with_suffix(".html"))


def _title(content: str) -> str:
    """Returns the text of a page's first heading."""
    found = re.search("<h1[^>]*>(.*?)</h1>", content, re.DOTALL)
    return re.sub("<[^>]*>", "", found[1]) if found else ""


def _content(path: str, repository_url: str) -> str:
    """Returns a notebook or a Markdown file of the repository as HTML."""
    if path.endswith(".md"):
        with reading(REPOSITORY / path, "cannot be read"):
            return markdown_to_html((REPOSITORY / path).read_text(encoding="utf-8"), path, repository_url)
    # The template `basic` writes the alternative texts of figures and no address of any script.
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        filters={"markdown2html": lambda source: markdown_to_html(source, path, repository_url)},
    )
    return exporter.from_notebook_node(read_notebook(REPOSITORY / path))[0]


def markdown_to_html(text: str, path: str, repository_url: str = "") -> str:
    """Returns Markdown as HTML whose headings have the anchors of GitHub and whose links fit the site.

    Args:
        text: Markdown.
        path: The path in the repository of the file that holds it.
        repository_url: See `write_site`.
    """
    return MarkdownWithMath(renderer=_Renderer(path, repository_url)).render(text)


class _Renderer(IPythonRenderer):
    def __init__(self, path: str, repository_url: str):
        super().__init__(escape=False, exclude_anchor_links=True)
        self._folder, self._repository_url = posixpath.dirname(path), repository_url

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        anchor = re.sub(r"<[^>]*>|[^\w -]", "", text.lower()).replace(" ", "-")
        return f'<h{level} id="{anchor}">{text}</h{level}>\n'

    def image(self, text: str, url: str, title: str | None = None) -> str:
        # A badge becomes a plain link: the site loads nothing from other servers.
        return text if "://" in url else super().image(text, url, title)

    def link(self, text: str, url: str, title: str | None = None) -> str:
        target, _, anchor = url.partition("#")
        if not target or ":" in target:
            return super().link(text, url, title)
        path = posixpath.normpath(posixpath.join(self._folder, target))
        if path in SOURCES:
            return super().link(text, _page(target) + (f"#{anchor}" if anchor else ""), title)
        if path in COPIES:
            return super().link(text, url, title)
        return super().link(text, f"{self._repository_url}/blob/main/{path}", title) if self._repository_url else text
