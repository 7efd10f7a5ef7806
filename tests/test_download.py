"""Downloads: whole or not at all."""

import hashlib
import http.server
import shutil
import socket
import threading

import pytest
from support import complaint

from tinynet.data import download as download_module
from tinynet.data.download import download, find_data, get

BODY = bytes(range(256)) * 4000
GOOD = {"size": len(BODY), "md5": hashlib.md5(BODY).hexdigest(), "pause": 0.01}


class Site(http.server.BaseHTTPRequestHandler):
    """Answers each request by the next of `server.script`; its last answer stays."""

    def do_GET(self):
        self.server.asked.append(self.headers.get("Range"))
        script = self.server.script
        script[min(len(self.server.asked), len(script)) - 1](self)

    def whole(self, body=BODY):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def cut(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:600_000])

    def rest(self):
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.send_response(206)
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        self.wfile.write(BODY[start:])

    def busy(self):
        self.send_error(503)

    def absent(self):
        self.send_error(404)

    def log_message(self, *given):
        pass


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.asked, server.script = [], [Site.whole]
    server.url = f"http://127.0.0.1:{server.server_port}/tiny-imagenet-200.zip"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("script", "asked"),
    [
        ([Site.whole], [None]),
        ([Site.busy, Site.busy, Site.whole], [None] * 3),
        ([Site.cut, Site.rest], [None, "bytes=600000-"]),
        ([Site.cut, Site.busy, Site.rest], [None, "bytes=600000-", "bytes=600000-"]),
        ([Site.cut, Site.whole], [None, "bytes=600000-"]),
    ],
)
def test_download_arrives_whole(site, tmp_path, script, asked):
    site.script = script
    target = tmp_path / "new" / "a.zip"
    assert download(target, site.url, **GOOD) == target
    assert target.read_bytes() == BODY and list(target.parent.iterdir()) == [target]
    assert site.asked == asked


@pytest.mark.parametrize(
    ("script", "requests", "words"),
    [
        ([Site.busy], 4, ["503"]),
        ([Site.absent], 1, ["404"]),
        ([Site.cut], 4, ["cut short at 600,000 of 1,024,000 bytes"]),
        ([lambda site: site.whole(BODY[:-1])], 1, ["1,023,999", "1,024,000"]),
        ([lambda site: site.whole(BODY[::-1])], 1, ["MD5", GOOD["md5"]]),
    ],
)
def test_failed_download_leaves_nothing(site, tmp_path, script, requests, words):
    site.script = script
    complaint(
        lambda: download(tmp_path / "a.zip", site.url, **GOOD),
        site.url,
        f"put it at {tmp_path / 'a.zip'}",
        "elsewhere",
        *words,
    )
    assert len(site.asked) == requests and not list(tmp_path.iterdir())


def test_refused_connection(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.zip"
    complaint(lambda: download(tmp_path / "a.zip", url, **GOOD), "refused", "elsewhere")
    assert not list(tmp_path.iterdir())


def test_interrupted_download_leaves_nothing_and_keeps_what_was(site, tmp_path, monkeypatch):
    def interrupt(*given, **named):
        raise KeyboardInterrupt

    (tmp_path / "a.zip").write_bytes(b"before")
    monkeypatch.setattr(download_module, "progress", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download(tmp_path / "a.zip", site.url, **GOOD)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.zip", b"before")]


def test_get_replaces_what_is_broken_and_keeps_what_is_not(tmp_path, archive_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(
        download_module, "download", lambda target: fetched.append(target) or target
    )
    assert get(archive_path) == archive_path and not fetched
    assert get(archive_path, force=True) == archive_path and fetched == [archive_path]
    (tmp_path / "a.zip").write_bytes(archive_path.read_bytes()[:3000])
    get(tmp_path / "a.zip")
    get(tmp_path)
    assert fetched[1:] == [tmp_path / "a.zip", tmp_path / "tiny-imagenet-200.zip"]
    monkeypatch.setattr(download_module, "SIZE", archive_path.stat().st_size)
    monkeypatch.setattr(download_module, "MD5", hashlib.md5(archive_path.read_bytes()).hexdigest())
    assert get(archive_path) == archive_path and len(fetched) == 3


def test_find_data(tmp_path, archive_path, folder, monkeypatch):
    monkeypatch.setattr(download_module, "download", lambda target: ("fetched", target))
    monkeypatch.delenv("TINYNET_DATA", raising=False)
    (tmp_path / "home/data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "home")
    assert find_data(archive_path) == archive_path
    with monkeypatch.context() as patch:
        patch.setenv("TINYNET_DATA", str(folder))
        assert find_data(None) == folder and find_data(archive_path) == archive_path
    assert find_data(None) == ("fetched", download_module.DEFAULT_PATH)
    folder.rename("data/tiny-imagenet-200")
    assert find_data(None) == download_module.DEFAULT_PATH.with_suffix("")
    shutil.copy(archive_path, "data/tiny-imagenet-200.zip")
    assert find_data(None) == download_module.DEFAULT_PATH
