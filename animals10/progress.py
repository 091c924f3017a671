"""Progress of whatever takes long, where somebody can see it: in a terminal, in a notebook, or in a log file.

In a terminal, a line on stderr is drawn anew. In a notebook it is text on stdout, since stderr looks like an error. A
log file gets a line every half a minute at most. All progress in a notebook begins with a carriage return, by which it
is told apart from results: it can be passed on to the terminal from which notebooks are run, or be removed.
"""

import io
import os
import re
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from IPython import get_ipython
from tqdm import tqdm

if TYPE_CHECKING:
    from nbformat import NotebookNode

SECONDS_BETWEEN_LINES = 30.0  # in a log file
AS_LOG = "NOTEBOOK_PROGRESS"  # the variable that `lines` tells a notebook to write its progress for a log file
Place = Literal["terminal", "notebook", "log", "log of a notebook", "listener"]


def place() -> Place:
    """Returns where progress is shown; in CI, and where stdout or stderr is no terminal, in a log."""
    in_notebook = hasattr(get_ipython(), "kernel")
    if os.environ.get("CI") or (in_notebook and os.environ.get(AS_LOG) == "lines"):
        return "log of a notebook" if in_notebook else "log"
    if in_notebook:
        return "notebook"
    return "terminal" if sys.stdout.isatty() and sys.stderr.isatty() else "log"


def tell(line: str) -> None:
    """Prints a message that is no result: to stderr; in a notebook to stdout, since stderr looks like an error."""
    print(line, file=sys.stdout if "notebook" in place() else sys.stderr, flush=True)


@cache
def tell_once(line: str) -> None:
    """Prints a message as `tell` does, once per process."""
    tell(line)


class Progress(tqdm):
    """A progress bar of tqdm, with the same options, that is shown as this place allows.

    In a log, the bar is a line every half a minute; a bar that had one has a last line at its end.

    Attributes:
        listener: If it is set, it is called in place of drawing, once a second at most: a worker of a cluster passes
            its progress on.
    """

    listener: ClassVar["Callable[[Progress], None] | None"] = None

    def __init__(self, *args: Any, in_steps: bool = False, **options: Any):
        """Takes what tqdm takes.

        Args:
            *args: As for tqdm.
            in_steps: Whether a log gets lines only where the description is set, and one by `finish` in any case.
            **options: As for tqdm; with `file`, the bar is a bar of tqdm and nothing else.
        """
        self.place: Place = "terminal" if "file" in options else "listener" if Progress.listener else place()
        self.shown, self.has_lines, self.is_finished = time.monotonic(), False, False
        if self.place == "notebook":
            options |= {"file": sys.stdout, "mininterval": 0.5, "ncols": 100}
        elif self.place != "terminal":
            options |= {"file": io.StringIO(), "ncols": 100}  # lines are printed by `display`
            if self.place == "listener":
                options |= {"mininterval": 1.0}
            elif in_steps:
                options |= {"miniters": float("inf"), "maxinterval": float("inf")}
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draws the bar, or prints a line if it is time for one."""
        if self.place in ("terminal", "notebook"):
            return super().display(msg, pos)
        if Progress.listener:
            Progress.listener(self)
            return True
        now = time.monotonic()
        if self.is_finished or now - self.shown >= SECONDS_BETWEEN_LINES:
            self.shown, self.has_lines = now, True
            start = "\r" if self.place == "log of a notebook" else ""
            print(f"{start}{(msg or str(self)).rstrip()}", flush=True)
        return True

    def finish(self, bar_format: str) -> None:
        """Ends the bar with a last line in another format."""
        self.bar_format, self.is_finished = bar_format, True
        self.close()

    def close(self) -> None:
        """Ends the bar."""
        self.is_finished |= self.has_lines
        super().close()


class PassedOnProgress(io.TextIOBase):
    """A file for what notebooks print while they are executed: passes on their progress, and nothing else.

    It goes to the terminal, or line by line to the log, as `Progress` would write it here.
    """

    def __init__(self) -> None:
        """Nothing is drawn yet."""
        super().__init__()
        self.is_open = False

    def write(self, text: str) -> int:
        """Passes on the progress in a text."""
        in_log = place() == "log"
        for piece in re.findall(r"\r[^\r\n]*|\n", text):
            if in_log and piece.strip():
                print(piece.strip(), flush=True)
            elif not in_log and (self.is_open or piece != "\n"):
                sys.stderr.write(piece)
                self.is_open = piece != "\n"
        sys.stderr.flush()
        return len(text)


def without_progress(text: str) -> str:
    """Returns a text that a notebook printed without its progress."""
    return re.sub(r"\r[^\r\n]*\n?", "", text)


def last_progress(text: str) -> str:
    """Returns a text that a notebook printed with the last state of each progress bar alone."""
    return re.sub(r"\r[^\r\n]*(?=\r)", "", text)


def rewrite_stdout(notebook: "NotebookNode", rewrite: Callable[[str], str]) -> None:
    """Rewrites what the cells of a notebook printed, in place: outputs that follow each other are joined first."""
    for cell in notebook.cells:
        joined: list[NotebookNode] = []
        for output in cell.get("outputs", []):
            if joined and output.get("name") == joined[-1].get("name") == "stdout":
                joined[-1].text += output.text
            else:
                joined.append(output)
        for output in joined:
            if output.get("name") == "stdout":
                output.text = rewrite(output.text)
        if joined:
            cell.outputs = [output for output in joined if output.get("text") != ""]
