"""Run cases: build the shared inputs once, and keep the folders of failed cases."""

import gc
import importlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.hostile import sandbox, world
from benchmarks.hostile.case import Case, Ended, Place
from benchmarks.hostile.right import NOT_RUN, WRONG, judge
from benchmarks.hostile.sandbox import Limits

# Late imports of the commands, done here: they must not count as time of a case.
_IMPORTED = (
    "tinynet.data.__main__",
    "tinynet.data.verify",
    "tinynet.data.copies",
    "tinynet.compare",
    "tinynet.evaluate",
    "tinynet.folder",
    "tinynet.predict",
    "tinynet.train",
    "tinynet.report.__main__",
    "tinynet.evaluation.folder",
    "tinynet.evaluation.predict",
    "tinynet.report.collect",
    "tinynet.evaluation.evaluate",
    "tinynet.evaluation.predictor",
    "tinynet.training.stages",
    "tinynet.evaluation.ensemble",
    "tinynet.report.figures",
    "torchinfo",
    "scipy.io",
    "scipy.stats",
    "jinja2",
    "tqdm",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
)


@dataclass(frozen=True)
class Verdict:
    """A case, its outcome, the reason if it failed, its seconds, and its peak memory in bytes."""

    case: Case
    outcome: str
    reason: str
    seconds: float
    memory: int

    @property
    def wrong(self) -> bool:
        return self.outcome in WRONG


class Session:
    """Runs cases one by one in the folder `room`; raises `RuntimeError` if the inputs cannot be
    built.
    """

    def __init__(self, room: Path, seed: int, limits: Limits = Limits()):  # noqa: B008, it is frozen
        self.room, self.seed, self.limits = room.resolve(), seed, limits
        for name in _IMPORTED:
            importlib.import_module(name)
        gc.collect()
        gc.freeze()  # otherwise the garbage collector of each child would copy these pages
        canary = self.room / "canary/folder"
        canary.mkdir(parents=True)
        (canary / "file.txt").write_text("nothing may change this\n")
        place = Place(self.room / "building", self.room / "world")
        place.make()
        place.world.mkdir()
        sandbox.in_child(lambda: world.build(place.world), place)
        shutil.rmtree(place.folder)

    def verdict(self, case: Case) -> Verdict:
        """Run one case; keep its folder if it fails."""
        try:
            ended = sandbox.run(case, self.room, self.seed, self.limits)
        except RuntimeError as error:
            return Verdict(case, NOT_RUN, str(error), 0.0, 0)
        outcome, reason = judge(case, ended, self.limits)
        verdict = Verdict(case, outcome, reason, ended.seconds, ended.memory)
        if verdict.wrong:
            _explain(verdict, ended)
        else:
            shutil.rmtree(ended.place.folder)
        return verdict


def _explain(verdict: Verdict, ended: Ended) -> None:
    lines = [
        verdict.case.line,
        f"{verdict.outcome}: {verdict.reason}",
        f"status {ended.status}, {ended.seconds:.2f} s, {ended.memory / 1e6:,.0f} MB",
        *(f"{kind}: {what}" for kind, what in ended.events),
    ]
    (ended.place.folder / "why.txt").write_text("\n".join(lines) + "\n")
