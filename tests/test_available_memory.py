"""How much memory a process may use: that of the machine, or of its container."""

import pytest

from tinynet import memory
from tinynet.memory import available_memory


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "1000\n"}, 1000),
        ("0::/a/b\n", {"memory.max": "max\n", "a/b/memory.max": "2000\n"}, 2000),
        ("9:cpu:/\n5:memory:/x\n", {"memory/x/memory.limit_in_bytes": "3000\n"}, 3000),
        ("5:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("0::/\n", {}, None),
        ("damaged", {"memory.max": "4000"}, 4000),
    ],
)
def test_the_limit_of_a_container(tmp_path, monkeypatch, groups, files, limit):
    (tmp_path / "own").write_text(groups)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    if limit is None:
        assert 2**27 < available_memory() < 2**50
    else:
        assert available_memory() == limit
