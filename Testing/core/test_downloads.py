"""Downloads of models end in time, do not fill the disk, and are repeated when the stored file is damaged."""

import hashlib
import http.server
import threading
import time
from dataclasses import replace

import pytest

from DRDMLib.errors import ModelError
from DRDMLib.models import catalogue

DATA = bytes(range(256)) * 400
NAME = "published-cardiac-2d"


class Server:
    """Serves ``DATA`` in an honest or a hostile way, and counts the requests."""

    def __init__(self):
        outer, self.how, self.requests, self.sent = self, "honest", 0, 0

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests += 1
                self.send_response(200)
                lengths = {"honest": len(DATA), "drip": len(DATA), "claims": 10**12, "odd": "many", "negative": -5}
                if outer.how in lengths:
                    self.send_header("Content-Length", str(lengths[outer.how]))
                self.end_headers()
                try:
                    if outer.how == "drip":
                        for byte in DATA:
                            self.wfile.write(bytes([byte]))
                            self.wfile.flush()
                            time.sleep(0.02)
                    elif outer.how == "endless":
                        while True:
                            self.wfile.write(DATA)
                            outer.sent += len(DATA)
                    elif outer.how != "silent":
                        self.wfile.write(DATA)
                    else:
                        time.sleep(30)
                except OSError:
                    pass

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("DRDM_HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    started = Server()
    entry = replace(
        catalogue.find(NAME),
        url=f"http://127.0.0.1:{started.server.server_port}/weights",
        digest=f"sha256:{hashlib.sha256(DATA).hexdigest()}",
        megabytes=0.1,
    )
    monkeypatch.setattr(catalogue, "CATALOGUE", (entry,))
    yield started
    started.server.shutdown()
    started.server.server_close()


def left(tmp_path):
    home = tmp_path / "home"
    return sorted(path.name for path in home.iterdir()) if home.is_dir() else []


@pytest.mark.parametrize("damage", [DATA[:-1], b"", DATA[:-1] + b"x", DATA + b"x", b"x" * 10**6])
def test_a_damaged_file_is_fetched_again(server, tmp_path, damage):
    path = catalogue.fetch(NAME)
    assert path.read_bytes() == DATA and server.requests == 1
    assert catalogue.fetch(NAME) == path and server.requests == 1
    path.write_bytes(damage)
    assert catalogue.fetch(NAME).read_bytes() == DATA and server.requests == 2


@pytest.mark.parametrize("how", ["endless", "claims"])
def test_a_download_that_is_too_large(server, tmp_path, how):
    server.how = how
    with pytest.raises(ModelError, match=r"larger than 0\.1 MB"):
        catalogue.fetch(NAME)
    assert left(tmp_path) == []


def test_a_download_that_takes_too_long(server, tmp_path, monkeypatch):
    """A server that sends a byte now and then never lets a socket time out."""
    monkeypatch.setattr(catalogue, "_BEGINNING", 0.5)
    monkeypatch.setattr(catalogue, "_PER_MEGABYTE", 0.0)
    server.how = "drip"
    with pytest.raises(ModelError, match="took too long"):
        catalogue.fetch(NAME)
    assert left(tmp_path) == []


def test_a_server_that_does_not_answer(server, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "_PATIENCE", 0.5)
    server.how = "silent"
    with pytest.raises(ModelError, match=r"interrupted|could not be downloaded"):
        catalogue.fetch(NAME)
    assert left(tmp_path) == []


@pytest.mark.parametrize("how", ["odd", "negative"])
def test_an_odd_length(server, tmp_path, how):
    server.how = how
    try:
        assert catalogue.fetch(NAME).read_bytes() == DATA
    except ModelError:
        assert left(tmp_path) == []


def test_a_failed_repetition_keeps_nothing_that_looks_whole(server, tmp_path):
    path = catalogue.fetch(NAME)
    path.write_bytes(b"damaged")
    server.how = "endless"
    with pytest.raises(ModelError, match="larger"):
        catalogue.fetch(NAME)
    assert left(tmp_path) == [path.name] and path.read_bytes() == b"damaged"
