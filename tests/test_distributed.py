"""Several processes on one machine: the same results as in one."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT, argv

from tinynet.distributed import World
from tinynet.models.global_batch import GlobalBatch
from tinynet.runs import StageFolder

COUNTS = (2, 3)


def environment(**more):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return {
        **os.environ,
        "PYTHONPATH": path,
        "TINYNET_PROGRESS": "0",
        "OMP_NUM_THREADS": "1",
        **more,
    }


def together(count, *words, folder, status=0, **more):
    """Run a script or a module in several processes; return what they print."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ran = subprocess.run(
        [*launcher, "--nproc-per-node", str(count), *map(str, words)],
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (ran.returncode == 0) == (status == 0), ran.stderr[-4000:]
    return ran


@pytest.fixture(scope="module", params=COUNTS)
def results(request, archive_path, tree, tmp_path_factory):
    """What the jobs of `ranks` return on every rank, and their folder."""
    folder, count = tmp_path_factory.mktemp("ranks"), request.param
    script, places = ROOT / "tests" / "ranks.py", dict(ARCHIVE=str(archive_path), TREE=str(tree))
    together(count, script, folder, *ranks.JOBS, folder=folder, **places)
    values = {
        name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(count)]
        for name in ranks.JOBS
    }
    return {**values, "folder": folder}


@pytest.fixture(scope="module")
def alone(archive_path, tree, tmp_path_factory):
    """The folder of the same run in one process, and what the commands print."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ARCHIVE", str(archive_path))
        patch.setenv("TREE", str(tree))
        jobs = ("run", "images", "pick_one")
        return folder, {name: ranks.JOBS[name](World()) for name in jobs}


def test_a_step_is_that_of_one_process(results):
    alone = ranks.steps(World())
    for rank in results["steps"]:
        for whole, shared in zip(alone, rank, strict=True):
            assert torch.equal(whole["random"], shared["random"])
            for name in ("logits", "gradients", "statistics"):
                torch.testing.assert_close(shared[name], whole[name], rtol=1e-9, atol=1e-12)


def test_one_process_computes_what_torch_does():
    torch.manual_seed(0)
    model, images = ranks.network(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    torch.manual_seed(1)
    plain = model(images)
    torch.manual_seed(1)
    with GlobalBatch(World(), 4):
        torch.testing.assert_close(model(images), plain, rtol=1e-9, atol=1e-12)


def test_batch_norms_are_recomputed_over_the_images_of_all(results):
    alone = ranks.norms(World())
    for rank in results["norms"]:
        torch.testing.assert_close(rank, alone, rtol=1e-9, atol=1e-12)


def test_a_hundred_steps_are_those_of_one_process(results):
    """Up to the rounding of sums in other orders, in float32."""
    alone = ranks.hundred_steps(World())
    assert len(alone["losses"]) == 110 and set(alone["improved"]) == {True, False}
    for rank in results["hundred_steps"]:
        for name in ("weights", "average", "losses"):
            gap = (rank[name] - alone[name]).norm() / alone[name].norm()
            assert gap < 1e-5, (name, gap)
        assert rank["improved"] == alone["improved"]
        assert torch.equal(rank["random"], alone["random"])


def test_ranks_agree(results):
    size = len(results["agreement"])
    for rank in results["agreement"]:
        assert rank["from main"] == 0 and rank["gathered"] == list(range(size))
        assert rank["any"] == (True, False)
        assert rank["sum"].tolist() == [size, sum(range(size))]
        assert rank["main refuses"] == rank["first refuses"] == "refused by rank 0"
        assert rank["another refuses"] == f"rank {size - 1}: refused by rank {size - 1}"
        assert "rank 1" in rank["differ"] and "data" in rank["differ"]


@given(size=st.integers(1, 9), count=st.integers(0, 40))
def test_shares_cover_every_row_once(size, count):
    rows = np.arange(count)
    shares = [rows[World(rank, size).share(count)] for rank in range(size)]
    assert np.array_equal(np.concatenate(shares), rows)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def weights(folder, stage, run="run"):
    return torch.load(StageFolder(folder / run, stage).last, weights_only=True)["state"]


def distance(state, reference):
    """The norm of the difference, as a fraction of the norm of the reference."""
    pairs = [(value.double(), reference[name].double()) for name, value in state.items()]
    ends = [torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1)]
    return float((ends[0] - ends[1]).norm() / ends[1].norm())


def test_a_run_is_that_of_one_process(results, alone):
    (reference, printed), tmp_path = alone, results["folder"]
    rows, expected = json.loads(results["run"][0]), json.loads(printed["run"])
    for stage in ("base", "finetune", "fixres"):
        one, many = weights(reference, stage), weights(tmp_path, stage)
        # Rounding grows in an untrained network: Adam divides small gradients by their size.
        limit, tolerance = (1e-5, 1e-5) if stage == "base" else (0.05, 0.1)
        assert distance(many["module"], one["module"]) < limit
        assert torch.equal(one["rng"], many["rng"])
        steps = [
            [json.loads(line) for line in (place / "run" / stage / "log.jsonl").open()]
            for place in (reference, tmp_path)
        ]
        assert [row["step"] for row in steps[0]] == [row["step"] for row in steps[1]]
        for before, after in zip(*steps, strict=True):
            assert after["loss"] == pytest.approx(before["loss"], rel=tolerance)
    assert [row["n"] for row in rows] == [row["n"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=0.1)
    for place in (reference, tmp_path):  # the hold-out has chosen a test size and views
        assert (place / "whole/fixres/scores.jsonl").is_file()
        assert json.loads((place / "whole/use.json").read_text())["stage"] == "fixres"
    features = sorted(path.name for path in (tmp_path / "cache").glob("features-*/*.npy"))
    assert features
    same: list[Path] = []
    for folder in (tmp_path / "cache").glob("features-*"):
        # Those for fixres come from weights of finetune, which differ.
        if (reference / "cache" / folder.name).is_dir():
            same.append(folder)
            for file in folder.glob("*.npy"):
                before = np.load(reference / "cache" / folder.name / file.name)
                assert np.array_equal(np.load(file), before)
    assert len(same) >= 2  # of the training images and the hold-out


def test_a_folder_is_scored_as_in_one_process(results, alone):
    for printed, expected in zip(results["images"][0], alone[1]["images"], strict=True):
        printed, expected = json.loads(printed), json.loads(expected)
        assert len(printed) == len(expected) > 0
        for row, other in zip(printed, expected, strict=True):
            assert row.keys() == other.keys()
            for key in row.keys() - {"pictures_per_second"}:
                if isinstance(row[key], float):
                    assert row[key] == pytest.approx(other[key], rel=1e-3)
                else:
                    assert row[key] == other[key]


def test_a_network_is_picked_by_all(results):
    for printed in results["pick_one"]:
        rows = json.loads(printed)
        assert {row["size"] for row in rows} == {32, 64}
    assert (results["folder"] / "pick.png").exists()


def test_mistakes_take_one_line(archive_path, tmp_path):
    where = ["--data", archive_path, "--cache", tmp_path / "cache"]
    for words, text in (
        (["tinynet.train", "--stage", "base", "--arch", "resnet19"], "resnet19"),
        (["tinynet.train", "--stage", "base", "--batch", "2"], "2: is less than one image"),
        (["tinynet.train", "--soup", "2"], "--soup 2: works in one process"),
        (["tinynet.soup", "a", "b"], "runs in one process; start it without torchrun"),
    ):
        ran = together(3, "-m", *words, *where, folder=tmp_path, status=2)
        lines = [line for line in ran.stderr.splitlines() if text in line]
        assert len(lines) == 1, ran.stderr
        assert "exitcode  : 2" in ran.stderr
        assert not list(tmp_path.glob("runs/*"))


# --- ranks that end, and runs that go on ---

LONG = argv("--stage finetune --run run --epochs 30 --size 32 --device cpu --precision float32")
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")


class Launched:
    """A training that torchrun has started, once it has taken some steps.

    `ranks`: the process of each rank.
    """

    def __init__(self, count, *words, folder, launch=()):
        self.log = folder / "run" / "finetune" / "log.jsonl"
        before = self.steps()
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", *launch]
        self.process = subprocess.Popen(
            [*launcher, "--nproc-per-node", str(count), "-m", "tinynet.train", "--", *words],
            cwd=folder,
            env=environment(),
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        end = time.monotonic() + 120
        while self.steps() < before + 8:
            running = time.monotonic() < end and self.process.poll() is None
            assert running, self.process.communicate()
            time.sleep(0.1)
        self.ranks = self._ranks()
        assert len(self.ranks) == count

    def steps(self):
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def _ranks(self):
        children = subprocess.getoutput(f"pgrep -P {self.process.pid}").split()
        ranks = {}
        for child in map(int, children):
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            ranks |= {int(v[5:]): child for v in variables if v.startswith(b"RANK=")}
        return ranks

    def messages(self):
        """What all have printed when all have ended, which takes less than a minute."""
        begin = time.monotonic()
        try:
            text = self.process.communicate(timeout=90)[1]
            assert time.monotonic() - begin < 60
            return text
        finally:
            self.process.kill()
            for process in self.ranks.values():
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                    pytest.fail("a rank is left behind")


@pytest.fixture
def base(alone, archive_path, tmp_path):
    """The flags of a finetune that starts from a finished base in the folder `run`."""
    shutil.copytree(alone[0] / "run" / "base", tmp_path / "run" / "base")
    return ["--data", str(archive_path), "--cache", str(alone[0] / "cache")]


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_rank_ends_the_run(number, rank, base, tmp_path):
    """Killed, hung or interrupted."""
    training = Launched(2, *LONG, *base, folder=tmp_path)
    os.kill(training.ranks[rank], number)
    text = training.messages()
    lines = [line for line in text.splitlines() if "--resume run" in line]
    assert len(lines) == 1, text
    if number in (signal.SIGKILL, signal.SIGSTOP):
        assert f"rank {rank} of 2" in lines[0]
    assert (tmp_path / "run" / "finetune" / "last.pt").exists()


@pytest.mark.slow
@needs_proc
def test_a_run_goes_on_with_other_numbers_of_processes(base, tmp_path):
    """Killed with two, interrupted with three, finished by one: the order of an undisturbed run."""
    first = Launched(2, *LONG, *base, folder=tmp_path)
    os.kill(first.ranks[1], signal.SIGKILL)
    first.messages()
    second = Launched(3, "--resume", "run", folder=tmp_path)
    second.process.terminate()
    assert "stopped and saved" in second.messages()
    command = [sys.executable, "-m", "tinynet.train"]
    for place, words in (("run", ["--resume", "run"]), ("whole", [*LONG, *base, "--out", "whole"])):
        subprocess.run([*command, *words], cwd=tmp_path, env=environment(), check=True)
        assert StageFolder(tmp_path / place, "finetune").finished
    logs = [
        [json.loads(line) for line in (tmp_path / place / "finetune" / "log.jsonl").open()]
        for place in ("run", "whole")
    ]
    for row, other in zip(*logs, strict=True):
        assert [row.get(key) for key in ("kind", "epoch", "step", "lr")] == [
            other.get(key) for key in ("kind", "epoch", "step", "lr")
        ]
    states = [weights(tmp_path, "finetune"), weights(tmp_path, "finetune", "whole")]
    assert torch.equal(states[0]["rng"], states[1]["rng"])


@pytest.mark.slow
@needs_proc
def test_torchrun_starts_the_ranks_again(base, tmp_path):
    """With --max-restarts, from the last checkpoint."""
    training = Launched(2, *LONG, *base, folder=tmp_path, launch=["--max-restarts", "1"])
    os.kill(training.ranks[1], signal.SIGKILL)
    text = training.process.communicate(timeout=200)[1]
    assert training.process.returncode == 0, text
    assert StageFolder(tmp_path / "run", "finetune").finished
    steps = [json.loads(line)["step"] for line in training.log.open() if '"step"' in line]
    assert sorted(set(steps)) == list(range(1, max(steps) + 1))


def can_rename_host():
    return (
        sys.platform == "linux"
        and not subprocess.run(
            ["unshare", "--uts", "true"], capture_output=True, check=False
        ).returncode
    )


@pytest.mark.slow
@pytest.mark.skipif(not can_rename_host(), reason="needs the right to rename the host")
@pytest.mark.parametrize("shared", [True, False])
def test_two_machines(shared, alone, archive_path, tmp_path):
    """With one folder for cache and run, and with one each; then a score by both."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launcher = argv(
        "-m torch.distributed.run --nnodes 2 --nproc-per-node 1 --master-addr localhost "
        f"--master-port {port} --node-rank"
    )
    where = ["--data", str(archive_path), "--cache", "cache"]
    for words in (
        ["tinynet.train", "--", *argv("--stage all --out run"), *ranks.NETWORK, *where],
        ["tinynet.evaluate", "--", *argv("--run run --stage base --tta flip --json"), *where],
    ):
        nodes = []
        for number in (0, 1):
            place = tmp_path / ("both" if shared else f"node{number}")
            place.mkdir(exist_ok=True)
            rename = ["unshare", "--uts", "sh", "-c", f'hostname node{number}; exec "$0" "$@"']
            nodes.append(
                subprocess.Popen(
                    [*rename, sys.executable, *launcher, str(number), "-m", *words],
                    cwd=place,
                    env=environment(),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        printed = [node.communicate(timeout=240) for node in nodes]
        assert [node.returncode for node in nodes] == [0, 0], printed
    texts = [text for text, _ in printed]
    assert not texts[1]
    expected = json.loads(alone[1]["run"])  # of another stage
    assert [row["n"] for row in json.loads(texts[0])] == [row["n"] for row in expected]
    (run,) = tmp_path.glob("*/run")
    assert (
        distance(
            torch.load(StageFolder(run, "base").last, weights_only=True)["state"]["module"],
            weights(alone[0], "base")["module"],
        )
        < 1e-5
    )
    features = [folder.name for folder in tmp_path.glob("*/cache/features-*")]
    # In training both use the cache of rank 0, whose path this one file system has for both.
    assert len(features) > 0 and (len(features) == len(set(features))) == shared


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="there is no compiler here")
def test_the_backbone_alone_is_compiled(tmp_path):
    alone = ranks.compiled_steps(World(), compiled=False)
    together(2, ROOT / "tests/ranks.py", tmp_path, "compiled_steps", folder=tmp_path)
    for rank in range(2):
        shared = torch.load(tmp_path / f"compiled_steps-{rank}.pt", weights_only=True)
        assert shared["graphs"] - alone["graphs"] >= 2  # one that tries, and that of full steps
        for name in ("losses", "weights"):
            torch.testing.assert_close(shared[name], alone[name], rtol=1e-4, atol=1e-5)
