"""`tinynet.data.download` as a command, and a local web server to download from.

python -m benchmarks.killing.download TARGET URL SIZE MD5
"""

import hashlib
import http.server
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tinynet.data.download import download
from tinynet.flags import run_command

_BLOCK, _PAUSE = 1 << 16, 0.02  # bytes and seconds: an archive takes most of a second


class _Handler(http.server.BaseHTTPRequestHandler):
    """Sends the archive slowly; closes the first connection in the middle, and can resume there."""

    def do_GET(self) -> None:
        body, start = self.server.body, 0
        if part := self.headers.get("Range"):
            start = int(part.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if part else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = len(body) if part else len(body) // 2
        try:
            for first in range(start, end, _BLOCK):
                self.wfile.write(body[first : min(first + _BLOCK, end)])
                time.sleep(_PAUSE)
        except OSError:
            pass  # the client was killed

    def log_message(self, *_: Any) -> None:
        pass


class Site:
    """A web server for one file; `url`, `size` and `md5` are the arguments of a download."""

    def __init__(self, path: Path):
        body = path.read_bytes()
        self.size, self.md5 = len(body), hashlib.md5(body, usedforsecurity=False).hexdigest()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.body = body
        self.url = f"http://127.0.0.1:{self._server.server_port}/{path.name}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def main() -> None:
    """Run the command."""
    target, url, size, md5 = sys.argv[1:]
    print(download(Path(target), url, int(size), md5, pause=0.05))


if __name__ == "__main__":
    run_command(main)
