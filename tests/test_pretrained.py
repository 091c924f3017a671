"""The download of MobileNetV2's weights, from a server on this machine that serves, hangs, refuses or sends rubbish."""

import base64
import hashlib
import http.server
import threading

import keras
import pytest

from animals10 import pretrained
from animals10.pretrained import fetch_mobilenet
from animals10.settings import Settings

URL = pretrained.URL  # before the tests replace it
CONTENT = b"\x89HDF weights" * 9000
MD5 = base64.b64encode(hashlib.md5(CONTENT, usedforsecurity=False).digest()).decode()
NAME = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"


class Server(http.server.ThreadingHTTPServer):
    daemon_threads, behaviour = True, ""
    asked: tuple[str, ...] = ()

    def handle_error(self, request, client_address):
        """The client gave up."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked += (self.path,)
        if server.behaviour == "hangs":
            server.ended.wait(20)
            return
        missing = server.behaviour == "has no such file"
        self.send_response(404 if missing else 200)
        if server.behaviour != "sends a page":
            self.send_header("x-goog-hash", "crc32c=AAAAAA==")
            self.send_header("x-goog-hash", f"md5={MD5}")
        self.end_headers()
        content = b"<html>Log in to this network</html>" if server.behaviour == "sends a page" else CONTENT
        self.wfile.write(content if server.behaviour == "serves" else content[:-1])
        self.wfile.flush()
        while server.behaviour in ("hangs midway", "is slow") and not server.ended.wait(0.05):
            self.wfile.write(b"x" * (server.behaviour == "is slow"))

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    with Server(("127.0.0.1", 0), Handler) as server:
        server.ended = threading.Event()
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setattr(pretrained, "URL", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setattr(pretrained, "SECONDS_WITHOUT_DATA", 0.4)
        monkeypatch.setattr(pretrained, "SECONDS", 1.6)
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        yield server
        server.ended.set()
        server.shutdown()


def test_weights_are_stored_once_and_the_sample_uses_them(server, tmp_path, capsys):
    server.behaviour = "serves"
    settings = Settings.from_environment({"ANIMALS10_PROFILE": "sample"})
    assert settings.weights == "imagenet" and (tmp_path / "models" / NAME).read_bytes() == CONTENT
    assert "9 MB" in capsys.readouterr().out
    assert fetch_mobilenet(224) == "" and not capsys.readouterr().out and server.asked == (f"/{NAME}",)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("hangs", "no answer|timed out"),
        ("hangs midway", "no answer|timed out"),
        ("is slow", "too slow"),
        ("sends a page", "published checksum"),
        ("sends a part", "published checksum"),
        ("has no such file", "Not Found"),
    ],
)
def test_whatever_goes_wrong_is_a_few_words_and_leaves_nothing(server, tmp_path, behaviour, reason):
    server.behaviour = behaviour
    found = fetch_mobilenet(224)
    assert any(words in found for words in reason.split("|")) and "\n" not in found, found
    assert not list(tmp_path.rglob("*.h5"))


def test_without_a_network_or_a_place_for_the_file_there_is_a_reason(server, tmp_path, monkeypatch):
    (tmp_path / "models").write_text("a file")
    server.behaviour = "serves"
    assert "models" in fetch_mobilenet(224)
    server.shutdown()
    server.server_close()
    assert fetch_mobilenet(224) == "Connection refused"


@pytest.mark.filterwarnings("ignore:`input_shape` is undefined")
@pytest.mark.parametrize("size", [96, 160, 224, 225, 64])
def test_the_file_is_the_one_that_keras_looks_for(server, tmp_path, monkeypatch, size):
    asked = {}

    def get_file(name, origin, cache_subdir):
        asked.update(name=name, origin=origin, folder=cache_subdir)
        raise InterruptedError

    server.behaviour = "serves"
    fetch_mobilenet(size)
    monkeypatch.setattr(keras.src.applications.mobilenet_v2.file_utils, "get_file", get_file)
    with pytest.raises(InterruptedError):
        keras.applications.MobileNetV2(include_top=False, input_shape=(size, size, 3))
    assert (tmp_path / asked["folder"] / asked["name"]).exists()
    assert asked["origin"] == URL + asked["name"]
