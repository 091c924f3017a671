"""The progress of runs that are trained at the same time: one table that is drawn anew, or plain lines in a log."""

import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from animals10.progress import SECONDS_BETWEEN_LINES, Progress, place, tell

COLUMNS = ("experiment", "state", "worker", "epoch", "val accuracy", "time left")
ORDER = ("failed", "training", "preparing", "starting", "waiting", "stored")  # of the rows of a table


@dataclass
class Row:
    """What is known of a run.

    Attributes:
        name: Its experiment.
        state: `waiting`, `starting`, `preparing`, `training`, `stored`, `skipped` or `failed`.
        worker: The machine and the process that train it.
        doing: What is prepared, in words.
        epoch: The current epoch, from 1.
        epochs: The maximum of epochs.
        accuracy: The latest validation accuracy.
        left: Seconds that are left at most.
        told: When a log had its last line of this run.
    """

    name: str
    state: str = "waiting"
    worker: str = ""
    doing: str = ""
    epoch: int | None = None
    epochs: int = 0
    accuracy: float | None = None
    left: float | None = None
    told: float = 0.0

    def cells(self) -> tuple[str, ...]:
        """Returns the texts of `COLUMNS`."""
        state = f"{self.state}: {self.doing}" if self.state == "preparing" and self.doing else self.state
        is_running = self.state in ("preparing", "training")
        epoch = f"{self.epoch}/{self.epochs}" if self.epoch else ""
        accuracy = f"{self.accuracy:.3f}" if self.accuracy is not None else ""
        return self.name, state, self.worker, epoch, accuracy, _duration(self.left) if is_running else ""


class RunTable:
    """The runs of one call, and where they are shown."""

    def __init__(self, names: Iterable[tuple[str, str]], title: str = ""):
        """Takes the digest and the name of each run, and what begins each line of a log."""
        self.rows = {digest: Row(name) for digest, name in names}
        self.title, self.place, self.drawn, self.n_lines = title, place(), 0.0, 0
        self.handle: Any = None
        # `make full` passes this line on to the terminal; the table stays in the notebook.
        self.bar = Progress(total=len(self.rows), bar_format="{desc}") if self.place == "notebook" else None

    def update(self, digest: str, **values: Any) -> None:
        """Sets values of a run; a log gets a line where its state changes, and every half a minute."""
        row = self.rows[digest]
        is_new_state = values.get("state", row.state) != row.state
        for name, value in values.items():
            setattr(row, name, value)
        if self.place in ("terminal", "notebook"):
            self.draw()
        elif is_new_state or (values.get("accuracy") and time.monotonic() - row.told >= SECONDS_BETWEEN_LINES):
            row.told = time.monotonic()
            self._print(self._line(row))

    def say(self, line: str) -> None:
        """Prints a line that stays, above the table."""
        self.pause()
        tell(line)
        self.draw(always=True)

    def draw(self, always: bool = False) -> None:
        """Draws the table, twice a second at most."""
        if self.place not in ("terminal", "notebook") or (time.monotonic() - self.drawn < 0.5 and not always):
            return
        self.drawn = time.monotonic()
        size = shutil.get_terminal_size((120, 40))
        lines = self.lines(size.lines - 2 if self.place == "terminal" else 60)
        if self.place == "terminal":
            self.pause()
            print("\n".join(line[: size.columns - 1] for line in lines), file=sys.stderr, flush=True)
            self.n_lines = len(lines)
            return
        from IPython.display import Pretty, display  # only a notebook has it imported

        text = Pretty("\n".join(lines))
        if self.handle:
            self.handle.update(text)
        else:
            self.handle = display(text, display_id=True)
        if self.bar:
            running = [row for row in self.rows.values() if row.state == "training"]
            words = "; ".join(f"{row.name} {row.cells()[3]} {row.cells()[4]}".rstrip() for row in running)
            self.bar.set_description_str(f"{self.title}{self.counts()}{': ' * bool(words)}{words}")

    def close(self) -> None:
        """Draws the table for the last time."""
        self.draw(always=True)
        if self.bar:
            self.bar.close()
        self.n_lines = 0

    def counts(self) -> str:
        """Returns how many runs are in which state, in words."""
        states = [row.state for row in self.rows.values()]
        found = [f"{states.count(state)} {state}" for state in reversed(ORDER) if state in states]
        return f"{len(states)} experiments: {', '.join(found)}"

    def lines(self, most: int) -> list[str]:
        """Returns the table as lines, so many at most: what runs comes first."""
        rows = sorted(self.rows.values(), key=lambda row: ORDER.index(row.state) if row.state in ORDER else len(ORDER))
        shown = rows if len(rows) + 2 <= most else rows[: max(most - 3, 1)]
        table = [COLUMNS, *(row.cells() for row in shown)]
        widths = [max(len(cells[column]) for cells in table) for column in range(len(COLUMNS))]
        lines = ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table]
        hidden = [f"… and {len(rows) - len(shown)} more"] if len(shown) < len(rows) else []
        return [*lines, *hidden, self.title + self.counts()]

    def _line(self, row: Row) -> str:
        name, state, worker, epoch, accuracy, left = row.cells()
        parts = [name, state, f"on {worker}" if worker else "", f"epoch {epoch}" if epoch else ""]
        parts += [f"val accuracy {accuracy}" if accuracy else "", f"{left} left at most" if left else ""]
        done = sum(other.state in ("stored", "skipped", "failed") for other in self.rows.values())
        return f"{self.title}[{done}/{len(self.rows)}] " + "  ".join(filter(None, parts))

    def _print(self, line: str) -> None:
        print(("\r" if self.place == "log of a notebook" else "") + line, flush=True)

    def pause(self) -> None:
        """Removes the table from a terminal, so that lines can be printed; it is drawn again later."""
        if self.n_lines:
            print(f"\x1b[{self.n_lines}F\x1b[J", end="", file=sys.stderr)  # to the table's first line; all below it
            self.n_lines = 0


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else Progress.format_interval(max(seconds, 0))
