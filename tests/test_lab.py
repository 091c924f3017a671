"""JupyterLab on working copies of the notebooks."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import pytest
import websocket

from animals10 import lab
from animals10.files import REPOSITORY
from animals10.lab import working_copies
from animals10.settings import NOTEBOOKS, Settings


@pytest.fixture
def settings(tmp_path):
    return Settings(root=tmp_path / "work", raw=tmp_path)


def save(path, change):
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    nbformat.write(notebook, path)  # as JupyterLab does, with the metadata that are there
    return path.read_bytes()


def test_working_copies_hold_no_outputs_and_lie_apart_from_executed_ones(settings):
    folder = working_copies(settings)
    assert folder == settings.root / "notebooks" and sorted(path.name for path in folder.iterdir()) == list(NOTEBOOKS)
    for name in NOTEBOOKS:
        cells = nbformat.read(folder / name, as_version=4).cells
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
        original = nbformat.read(REPOSITORY / name, as_version=4).cells
        assert [cell.source for cell in cells] == [cell.source for cell in original]


def test_a_changed_copy_is_kept_and_an_untouched_one_follows_the_repository(settings, tmp_path, monkeypatch, capsys):
    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.setattr(lab, "REPOSITORY", repository)
    for name in NOTEBOOKS:
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), repository / name)
    untouched, edited, executed = (working_copies(settings) / name for name in NOTEBOOKS)
    output = nbformat.v4.new_output("stream", name="stdout", text="1")
    mine = save(edited, lambda notebook: notebook.cells[0].update(source="mine = 1"))
    ran = save(executed, lambda notebook: notebook.cells[0].update(outputs=[output], execution_count=1))
    working_copies(settings)
    assert (edited.read_bytes(), executed.read_bytes()) == (mine, ran) and not capsys.readouterr().out
    for name in NOTEBOOKS:
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("2")]), repository / name)
    working_copies(settings)
    assert (edited.read_bytes(), executed.read_bytes()) == (mine, ran)
    assert capsys.readouterr().out.count("is kept") == 2
    assert nbformat.read(untouched, as_version=4).cells[0].source == "2"
    save(untouched, lambda notebook: notebook.metadata.pop("animals10"))  # a notebook of one's own
    before = untouched.read_bytes()
    working_copies(settings)
    assert untouched.read_bytes() == before


def answer_of(request):
    """Asks a server that may have named its address a moment before it listens there."""
    for _ in range(100):
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.read()
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError):
                raise
            time.sleep(0.1)
    raise TimeoutError


def test_jupyterlab_starts_and_its_kernels_import_the_code_of_this_repository(settings, tmp_path):
    environment = os.environ | {"ANIMALS10_ROOT": str(settings.root), "ANIMALS10_PROFILE": "full"}
    environment |= {"JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime")}
    environment |= {"IPYTHONDIR": str(tmp_path / "ipython")}
    options = [
        "--no-browser",
        "--port=0",
        "--ServerApp.ip=127.0.0.1",
        "--IdentityProvider.token=secret",
        "--allow-root",
    ]
    command = [sys.executable, REPOSITORY / "scripts" / "lab.py", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, start_new_session=True, **pipes) as server:
        try:
            found = (re.search(r"http://(?:localhost|127\.0\.0\.1):(\d+)/", line) for line in server.stdout)
            port = next(filter(None, found))[1]
            about = {"name": NOTEBOOKS[0], "path": NOTEBOOKS[0], "type": "notebook", "kernel": {"name": "python3"}}
            headers = {"Authorization": "token secret", "Content-Type": "application/json"}
            address = f"http://127.0.0.1:{port}/api/sessions"
            request = urllib.request.Request(address, json.dumps(about).encode(), headers)
            kernel = json.loads(answer_of(request))["kernel"]["id"]
            channels = f"ws://127.0.0.1:{port}/api/kernels/{kernel}/channels"
            socket = websocket.create_connection(channels, header=["Authorization: token secret"], timeout=60)
            code = "import animals10, os; print(animals10.__file__, os.getcwd())"
            content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
            header = {"msg_id": "1", "msg_type": "execute_request", "username": "", "session": "s", "version": "5.3"}
            message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
            socket.send(json.dumps(message))
            text = ""
            while not text:
                answer = json.loads(socket.recv())
                text = answer["content"].get("text", "") if answer["msg_type"] == "stream" else ""
            socket.close()
        finally:
            server.terminate()
            os.killpg(server.pid, 15)
    assert text.split() == [str(REPOSITORY / "animals10" / "__init__.py"), str(settings.root / "notebooks")]
