"""A process that has imported torch and forks for every command, which starts in milliseconds.

    python -m benchmarks.killing.server SOCKET

A fork behaves like `python -m`: it is the main thread, leads a session, has Python's own signal
handlers, and ends with the interpreter's own shutdown. The server ends when its standard input is
closed.
"""

import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import sys
import tempfile

from benchmarks.killing import launch

_ELSEWHERE = (
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "jinja2",
    "scipy.stats",
    "scipy.optimize",
    "torchvision.models",
    "tqdm",
)


def main() -> None:
    """Run the server; in a fork, run the command and return to the interpreter."""
    launch.small()
    for name in _ELSEWHERE:
        importlib.import_module(name)
    package = importlib.import_module("tinynet")
    for part in pkgutil.walk_packages(package.__path__, "tinynet."):
        # The fork runs the module of a command itself, like `python -m`.
        if part.name.count(".") > 1 and not part.name.endswith("__main__"):
            importlib.import_module(part.name)
    gc.freeze()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(sys.argv[1])
        listener.listen(64)
        words = _serve(listener)
    launch.run(words)


def _serve(listener: socket.socket) -> list[str]:
    """Fork for every command, and send each client the exit status; in a fork, return its words."""
    clients: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [], 0.005)
        while clients:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            with clients.pop(pid) as client:
                client.send(str(os.waitstatus_to_exitcode(status)).encode())
        if sys.stdin in ready:  # nothing is written there, so it was closed
            os._exit(0)
        if listener not in ready:
            continue
        client, _ = listener.accept()
        order, streams, _, _ = socket.recv_fds(client, 1 << 18, 3)
        if pid := os.fork():
            clients[pid] = client
            for stream in streams:
                os.close(stream)
            continue
        for other in (client, *clients.values()):
            other.close()
        return _become(json.loads(order), streams)


def _become(order: dict, streams: list[int]) -> list[str]:
    """In a fork: use the streams, folder and environment of the command; return its words."""
    import numpy as np

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    # a background job of a shell ignores SIGINT
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    np.random.seed()  # otherwise all forks would draw the same numbers
    tempfile.tempdir = None
    return order["words"]


if __name__ == "__main__":
    main()
