"""Obstacles in a folder of images: the tables of cases, and the functions that create them."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

# puts something into a folder with one image
Obstacle = Callable[[Path, bytes], Any]
STRANGE = "zz_strange.JPEG"


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def socket_at(path: Path) -> None:
    """Create a socket; from its folder, because the name of a socket must be short."""
    before = os.getcwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as endpoint:
        endpoint.bind(path.name)
    os.chdir(before)


def _elsewhere(folder: Path, image: bytes, *names: str) -> Path:
    """A folder outside the searched one, with images."""
    top = next(parent for parent in folder.parents if parent.name == "in")
    for name in names:
        write(top / "elsewhere" / name, image)
    return top / "elsewhere"


def _deep(folder: Path, image: bytes, levels: int) -> None:
    """An image in deeply nested folders; in deeper ones than a path can name."""
    before = os.getcwd()
    os.chdir(folder)
    for _ in range(levels):
        os.mkdir("d" * 40)
        os.chdir("d" * 40)
    Path("zz_deep.png").write_bytes(image)
    os.chdir(before)


def _many_links(folder: Path, image: bytes) -> None:
    """Twelve folders that all link to each other, so that the number of paths is infinite."""
    for number in range(12):
        (folder / f"links{number}").mkdir()
        for other in range(12):
            (folder / f"links{number}" / f"to{other}").symlink_to(f"../links{other}")


UNREADABLE: dict[str, Obstacle] = {
    "broken-link": lambda folder, image: (folder / STRANGE).symlink_to("nowhere.JPEG"),
    "broken-link-outside": lambda folder, image: (folder / STRANGE).symlink_to(
        "/nowhere/at/all.JPEG"
    ),
    "link-to-itself": lambda folder, image: (folder / STRANGE).symlink_to(STRANGE),
    "link-to-text": lambda folder, image: (folder / STRANGE).symlink_to("/etc/passwd"),
    "link-into-a-file": lambda folder, image: (folder / STRANGE).symlink_to("a.png/x.JPEG"),
    "no-bytes": lambda folder, image: (folder / STRANGE).write_bytes(b""),
    "one-byte": lambda folder, image: (folder / STRANGE).write_bytes(b"\xff"),
    "text": lambda folder, image: (folder / STRANGE).write_text("no image\n"),
    "zeros": lambda folder, image: (folder / STRANGE).write_bytes(bytes(10_000)),
    "sparse-100-gb": lambda folder, image: _sparse(folder / STRANGE, 100 << 30),
}


def _sparse(path: Path, size: int) -> None:
    with open(path, "wb") as stream:
        stream.truncate(min(size, 5 << 30))  # the disk space that a process here may use


UNCLEAR: dict[str, Obstacle] = {
    "link-to-zeros": lambda folder, image: (folder / STRANGE).symlink_to("/dev/zero"),
    "pipe": lambda folder, image: os.mkfifo(folder / STRANGE),
    "socket": lambda folder, image: socket_at(folder / STRANGE),
    "link-to-a-pipe": lambda folder, image: (
        os.mkfifo(folder / "pipe"),
        (folder / STRANGE).symlink_to("pipe"),
    ),
    "link-to-a-terminal": lambda folder, image: (folder / STRANGE).symlink_to("/dev/tty"),
    "link-to-nothing": lambda folder, image: (folder / STRANGE).symlink_to("/dev/null"),
}

PASSED_OVER: dict[str, Obstacle] = {
    **{
        f"folder-{name.strip('.@#_$').lower().replace(' ', '-')}": (
            lambda folder, image, name=name: write(folder / name / "copy.JPEG", image)
        )
        for name in (
            ".ipynb_checkpoints",
            "__MACOSX",
            "@eaDir",
            ".cache",
            ".git",
            ".Trashes",
            "__pycache__",
        )
    },
    "hidden-file": lambda folder, image: write(folder / "._copy.JPEG", b"Mac OS X"),
    "folder-called-image": lambda folder, image: (folder / "folder.JPEG").mkdir(),
    "folder-of-machines": lambda folder, image: [
        write(folder / name, b"x")
        for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "copy.JPEG~", "copy.JPEG.part")
    ],
    "loop": lambda folder, image: (folder / "loop").symlink_to("."),
    "loop-above": lambda folder, image: (folder / "loop").symlink_to("../.."),
    "loop-absolute": lambda folder, image: (folder / "loop").symlink_to(folder.parent),
    "loop-of-two": lambda folder, image: (
        (folder / "one").symlink_to("two"),
        (folder / "two").symlink_to("one"),
    ),
    "broken-link-to-a-folder": lambda folder, image: (folder / "folder").symlink_to("nowhere/"),
    "many-links": _many_links,
    "pipe-without-ending": lambda folder, image: os.mkfifo(folder / "pipe"),
    "broken-link-without-ending": lambda folder, image: (folder / "link").symlink_to("nowhere"),
}

# The function, and the images that it adds.
FOLLOWED: dict[str, tuple[Any, ...]] = {
    "link-to-a-file": (
        lambda folder, image: (folder / "zz_x.png").symlink_to(
            _elsewhere(folder, image, "x.png") / "x.png"
        ),
        "zz_x.png",
    ),
    "link-to-a-folder": (
        lambda folder, image: (folder / "zz_link").symlink_to(
            _elsewhere(folder, image, "x.png", "y.png")
        ),
        "x.png",
        "y.png",
    ),
    "link-to-a-link": (
        lambda folder, image: (
            (folder / "zz_link").symlink_to("../../one"),
            (folder.parents[1] / "one").symlink_to(_elsewhere(folder, image, "x.png")),
        ),
        "x.png",
    ),
    "two-links-to-a-folder": (
        lambda folder, image: [
            (folder / name).symlink_to(_elsewhere(folder, image, "x.png"))
            for name in ("zz_one", "zz_two")
        ],
        "x.png",
    ),
    "link-called-image": (
        lambda folder, image: (folder / "zz_link.JPEG").symlink_to(
            _elsewhere(folder, image, "x.png")
        ),
        "x.png",
    ),
    "image-in-a-folder-called-image": (
        lambda folder, image: write(folder / "zz.JPEG/x.png", image),
        "x.png",
    ),
    "folders-100-deep": (
        lambda folder, image: write(folder.joinpath(*["z"] * 100, "x.png"), image),
        "x.png",
    ),
    "link-chain": (
        lambda folder, image: (
            [(folder / "zz_chain").symlink_to("zz_chain0")]
            + [(folder / f"zz_chain{at}").symlink_to(f"zz_chain{at + 1}") for at in range(20)]
            + [(folder / "zz_chain20").symlink_to(_elsewhere(folder, image, "x.png"))]
        ),
        "x.png",
    ),
}

STRANGE_NAMES: dict[str, tuple[Any, ...]] = {
    "name-no-text": (
        lambda folder, image: write(folder / os.fsdecode(b"zz\xff\xfe.JPEG"), image),
        os.fsdecode(b"zz\xff\xfe.JPEG"),
    ),
    "name-newline": (lambda folder, image: write(folder / "zz\nx.JPEG", image), "zz\nx.JPEG"),
    "name-escape": (
        lambda folder, image: write(folder / "zz\x1b[31m.JPEG", image),
        "zz\x1b[31m.JPEG",
    ),
    "name-long": (
        lambda folder, image: write(folder / ("z" * 250 + ".JPEG"), image),
        "z" * 250 + ".JPEG",
    ),
    "name-spaces": (lambda folder, image: write(folder / "zz  x .JPEG", image), "zz  x .JPEG"),
    "name-dash": (lambda folder, image: write(folder / "zz--help.JPEG", image), "zz--help.JPEG"),
    "name-right-to-left": (
        lambda folder, image: write(folder / "zz\u202egpj.JPEG", image),
        "zz\u202egpj.JPEG",
    ),
    "name-no-text-unreadable": (
        lambda folder, image: write(folder / os.fsdecode(b"zz\xff.JPEG"), b"x"),
    ),
    "name-newline-unreadable": (lambda folder, image: write(folder / "zz\nx.JPEG", b"x"),),
    "name-escape-unreadable": (lambda folder, image: write(folder / "zz\x1b[31m.JPEG", b"x"),),
    "path-too-long": (lambda folder, image: _deep(folder, image, 120),),
}
