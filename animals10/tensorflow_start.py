"""How TensorFlow starts: its threads, oneDNN, and the messages that are shown.

TensorFlow, CUDA, oneDNN and absl write messages from C++ while TensorFlow is imported, and before TensorFlow's own log
level counts. So file descriptor 2 leads to a filter during the import. The filter is a process of its own, because it
must outlive a crash. It drops the lines that are known from every start and hands all others on. `TF_CPP_MIN_LOG_LEVEL`
decides as always what is shown: 0 shows everything; without it, 2 is set, which hides information and warnings.
"""

import importlib.util
import os
import platform
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec
from types import ModuleType

LEVEL = "TF_CPP_MIN_LOG_LEVEL"  # TensorFlow's variable: 0 shows all, 1 no information, 2 no warnings, 3 no errors
# The two forms in which a log line begins: with severity, date, time and thread, or with date, time and severity.
LOG_LINE = re.compile(rb"(?:([IWEF])\d{4} \S+ +\d+ |\d{4}-\d\d-\d\d \S+ ([IWEF]) )\S+\.(?:cc|h):\d+\] ")
# Lines of every start that have no severity, or a false one: without a GPU, or AVX-512 FP16, there is nothing to be
# repaired.
START_LINE = re.compile(rb"WARNING: All log messages before absl::InitializeLog|To enable the following instructions: ")
FALSE_ERROR = re.compile(rb"failed call to cuInit|Unable to register cu\w+ factory|oneDNN supports DT_HALF only on")
ONEDNN = "TF_ENABLE_ONEDNN_OPTS"  # TensorFlow's variable: 1 or 0
GROWTH = "TF_FORCE_GPU_ALLOW_GROWTH"
THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")  # TensorFlow's variables


def limit_threads() -> None:
    """Makes TensorFlow start with as many threads as `ANIMALS10_CPUS_PER_RUN` says, if runs are trained here.

    It takes them with what it computes first, which is while this package is imported.
    """
    threads = os.environ.get("ANIMALS10_CPUS_PER_RUN", "").strip()
    if threads.isdigit() and not os.environ.get("ANIMALS10_CLUSTER", "").strip():
        os.environ.update(dict.fromkeys(THREADS, threads))


def use_onednn() -> None:
    """Makes TensorFlow compute with oneDNN on every x86-64 processor, unless `TF_ENABLE_ONEDNN_OPTS` is 0.

    By default, TensorFlow does so only where the processor has instructions for neural networks, such as AVX-512 VNNI
    (RFC 400 of tensorflow/community). With AVX2 alone, CNNs train up to three times as fast, see docs/design.md.
    """
    if platform.machine() in ("x86_64", "AMD64"):
        os.environ.setdefault(ONEDNN, "1")


def share_gpu() -> None:
    """Makes TensorFlow take the memory of a GPU as it needs it: else the first notebook would take it all."""
    os.environ.setdefault(GROWTH, "true")


def filter_start_messages() -> None:
    """Filters the messages of the next import of TensorFlow, by whatever module."""
    # A warning of NumPy 2.0 while Keras 3.13 is imported.
    warnings.filterwarnings("ignore", "In the future `np.object` will be defined", FutureWarning)
    if _level(os.environ.setdefault(LEVEL, "2")) and "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _Finder())


def _level(text: str) -> int:
    return int(text) if text.strip().isdigit() else 0


class _Finder:
    """Finds TensorFlow as Python does, once, and has it loaded with a filtered stderr."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            load = spec.loader.exec_module

            def load_filtered(module: ModuleType) -> None:
                with filtered_stderr():
                    load(module)
                    if not _has_visible_gpu():  # then TensorFlow complains when it first looks for one: now
                        module.config.list_physical_devices("GPU")

            setattr(spec.loader, "exec_module", load_filtered)  # noqa: B010 - mypy takes an assignment for a mistake
        return spec


def _has_visible_gpu() -> bool:
    """Tells whether there may be an NVIDIA GPU that TensorFlow sees: such a machine is left as it is."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    return not is_hidden and any(map(os.path.exists, ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/dxg")))


@contextmanager
def filtered_stderr() -> Iterator[None]:
    """Hands what is written to file descriptor 2 on, also from C++ and in a crash, but for the lines of every start."""
    try:
        kept, (end, start) = os.dup(2), os.pipe()
        command = [sys.executable, "-I", "-S", __file__, os.environ[LEVEL]]
        process = subprocess.Popen(command, stdin=end)
    except OSError:  # there is no stderr, or no process can be started: rather noise than a failure
        yield
        return
    os.close(end)
    os.dup2(start, 2)
    os.close(start)
    try:
        yield
    finally:
        if sys.stderr:
            sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        with suppress(subprocess.TimeoutExpired):  # something that the import has started holds the descriptor open
            process.wait(5)


def is_start_line(line: bytes, level: int) -> bool:
    """Tells whether a line comes from every start of TensorFlow and is to be hidden at a level of TensorFlow's log."""
    if found := LOG_LINE.match(line):
        return "IWEF".index((found[1] or found[2]).decode()) < level or (level > 1 and bool(FALSE_ERROR.search(line)))
    return bool(START_LINE.match(line))


def main() -> None:
    """Copies stdin to stderr, line by line, without the lines of every start; the argument is the level."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the program that writes
    for line in sys.stdin.buffer:
        if not is_start_line(line, _level(sys.argv[1])):
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()


if __name__ == "__main__":
    main()
