"""Keep a run within its minutes: what is planned and spent, and where the paced stage has to end.

Time is `time.monotonic`, so a change of the clock has no effect.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tinynet import console
from tinynet.errors import InputError
from tinynet.files import read_json, write_json
from tinynet.training.loop import Training
from tinynet.training.plans import Part, Plan
from tinynet.values import counted

# The time of a step is the median of the last measurements, `_LEAST` to `_WINDOW` of them. Each
# covers the steps of a second or more.
_WINDOW, _LEAST = 60, 5
_TOLERANCE = 0.02  # of the planned steps: a smaller change of the end is not made
_NOTED = 0.1  # of the planned steps: a larger change is printed
_MARGIN = 0.02  # of the minutes; pacing leaves them free

Clock = Callable[[], float]


@dataclass(frozen=True)
class Limits:
    """The stage whose end depends on the time, its fewest and most epochs.

    `check`: seconds of an evaluation after an epoch, by the plan.
    """

    stage: str
    least: float
    most: float
    check: float


class Budget:
    """The minutes of a run, which `plan.json` in its folder stores.

    `minutes`: what the user has. `parts`: what is planned. `limits`: how the paced stage ends.
    `spent`: seconds before now.
    """

    def __init__(
        self,
        minutes: float,
        parts: Sequence[Part],
        limits: Limits,
        spent: float = 0.0,
        clock: Clock = time.monotonic,
    ):
        self.minutes, self.parts, self.limits = minutes, tuple(parts), limits
        self.clock = clock
        self._start = clock() - spent
        self.actual: dict[str, float] = {}  # stage -> seconds
        self._stage, self._stage_start = "", clock()

    @classmethod
    def of(cls, plan: Plan, since: float, clock: Clock = time.monotonic) -> "Budget":
        """Return the budget of a new run; `since`: the time at which its minutes began."""
        limits = Limits(plan.kind.paced, *plan.kind.epochs, plan.check)
        return cls(plan.minutes, plan.parts, limits, clock() - since, clock)

    @classmethod
    def read(cls, run: Path, clock: Clock = time.monotonic) -> "Budget | None":
        """Return the budget of a run that is continued; None if it was not started with minutes.

        The time between the end of the last command and now does not count. Raises `InputError` if
        the file cannot be read.
        """
        path = plan_file(run)
        if not path.is_file():
            return None
        try:
            state = read_json(path)
            parts = [
                Part(str(part["stage"]), str(part["what"]), float(part["seconds"]))
                for part in state["parts"]
            ]
            budget = cls(
                float(state["minutes"]),
                parts,
                Limits(**state["limits"]),
                float(state["spent"]),
                clock,
            )
            budget.check()
            budget.actual = {str(name): float(value) for name, value in state["actual"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}: cannot be read ({type(error).__name__}: {error}); restore it from a copy"
                + console.advice(", or remove it and --resume the run without a time limit")
            ) from None
        return budget

    def save(self, run: Path) -> None:
        """Write `plan.json`."""
        write_json(
            plan_file(run),
            {
                "minutes": self.minutes,
                "limits": asdict(self.limits),
                "spent": round(self.spent, 1),
                "parts": [
                    {"stage": part.stage, "what": part.what, "seconds": part.seconds}
                    for part in self.parts
                ],
                "actual": self.actual,
            },
        )

    def check(self) -> None:
        """Raise `ValueError` for minutes or parts that no plan has."""
        limits = self.limits
        if not (math.isfinite(limits.check) and limits.check >= 0):
            raise ValueError("the time of an evaluation is not 0 or more")
        numbers = [self.minutes, *(part.seconds for part in self.parts), limits.least, limits.most]
        if not all(math.isfinite(number) and number > 0 for number in numbers):
            raise ValueError("a time or a number of epochs is not greater than 0")
        if not math.isfinite(self.spent):
            raise ValueError("spent is not finite")
        if limits.stage not in {part.stage for part in self.parts}:
            raise ValueError(f"there is no part for {limits.stage}")

    @property
    def spent(self) -> float:
        """Seconds since the run began, without those between two commands."""
        return self.clock() - self._start

    def planned(self, stage: str) -> float:
        """The seconds that are planned for a stage."""
        return sum(part.seconds for part in self.parts if part.stage == stage)

    def begin(self, stage: str, started: bool = False) -> bool:
        """Begin a stage, or go on with it; return whether there is time for it.

        Only `fixres` is left out, if it is not `started` and a fifth of its time is missing.
        """
        left = 60 * self.minutes - self.spent
        needed = self.planned(stage) - self.actual.get(stage, 0.0)
        if stage == "fixres" and not started and left < 0.8 * needed:
            return False
        self._stage, self._stage_start = stage, self.clock()
        return True

    def leave(self, run: Path) -> None:
        """Note the time that the present stage has taken, if any, and write `plan.json`."""
        if self._stage:
            seconds = self.actual.get(self._stage, 0.0) + self.clock() - self._stage_start
            self.actual[self._stage] = round(seconds, 1)
            self._stage = ""
            self.save(run)

    def pace(self, stage: str) -> "Pace | None":
        """Return where a stage has to end; None for a stage that takes the time it needs."""
        if stage != self.limits.stage:
            return None
        last = max(number for number, part in enumerate(self.parts) if part.stage == stage)
        after = sum(part.seconds for part in self.parts[last + 1 :])
        end = self._start + 60 * self.minutes * (1 - _MARGIN)
        return Pace(end, self.parts[last].seconds, after, self.limits, self.clock)

    def lines(self) -> list[str]:
        """What the run took, beside what was planned."""
        lines = [f"the run took {self.spent / 60:.1f} of {counted(f'{self.minutes:g}', 'minute')}"]
        for stage, seconds in self.actual.items():
            lines.append(
                f"{seconds / 60:8.1f} min  {stage} (planned: {self.planned(stage) / 60:.1f} min)"
            )
        return lines


@dataclass(frozen=True)
class Watch:
    """The budget of the run in `run`, for one of its trainings.

    `paced`: whether this training may end earlier or later than planned.
    """

    budget: Budget
    run: Path
    paced: bool = True

    def save(self) -> None:
        """Write `plan.json`."""
        self.budget.save(self.run)

    def pace(self, stage: str) -> "Pace | None":
        """Return where this training of a stage has to end; None if it takes the time it needs."""
        return self.budget.pace(stage) if self.paced else None


class Pace:
    """Where a training has to end, by the rate of its steps so far.

    `end`: when the run has to be finished. `planned`: seconds of this training by the plan, with
    the evaluations after its epochs.
    `after`: seconds of what follows, at the plan's rates; it takes longer on a machine that has
    become slower.
    """

    def __init__(self, end: float, planned: float, after: float, limits: Limits, clock: Clock):
        self.end, self.planned, self.after = end, planned, after
        self.limits, self.clock = limits, clock
        self._step_seconds: deque[float] = deque(maxlen=_WINDOW)
        self._last: tuple[float, int] | None = None  # time and step of the last measurement
        self._checks = [limits.check]  # seconds of an evaluation: by the plan, and measured
        self._noted = 0  # steps of the stage, as they were printed last

    def epoch_ended(self, training: Training) -> None:
        """Note how long the evaluation after an epoch took."""
        now = self.clock()
        if self._last:
            self._checks.append(now - self._last[0])
        self._last = now, training.total_steps

    def follow(self, training: Training) -> None:
        """End the training earlier or later, if the rate of its last steps asks for it."""
        now, step = self.clock(), training.total_steps
        planned = training.stage.total_steps(training.steps)
        checks = math.ceil(planned / training.steps) * self.limits.check
        # a plan without time for steps is of another version
        steps = self.planned - checks if self.planned > checks else self.planned
        planned_step = steps / planned
        self._noted = self._noted or training.total
        if self._last and step > self._last[1]:
            self._step_seconds.append((now - self._last[0]) / (step - self._last[1]))
        self._last = now, step
        if len(self._step_seconds) < _LEAST or step >= training.total:
            return
        # The median ignores a measurement in which the process was stopped.
        seconds = statistics.median(self._step_seconds)
        slower = max(1.0, seconds / planned_step)
        total = self._total(training, (self.end - now - self.after * slower) / seconds, seconds)
        if abs(total - training.total) > _TOLERANCE * planned:
            training.end_at(total)
            self._note(training, seconds, planned_step)

    def _total(self, training: Training, left: float, seconds: float) -> int:
        """The number of steps of the whole stage that fits in the time.

        `left`: the remaining time, in steps of `seconds` each. The evaluation after each epoch
        takes a part of it. A last partial epoch is dropped if it is shorter than its evaluation and
        shorter than half an epoch.
        """
        step, steps = training.total_steps, training.steps
        check = statistics.median(self._checks[-3:]) / seconds
        present = training.epoch * steps  # where the present epoch began
        left += step - present
        whole = max(0, math.floor(left / (steps + check)))
        total: float = present + whole * steps
        rest = left - whole * (steps + check) - check
        if rest >= min(check, steps / 2) or total <= step:
            total += max(0.0, rest)
        least, most = (round(epochs * steps) for epochs in (self.limits.least, self.limits.most))
        return max(min(round(total), most), least, step if training.step == steps else step + 1)

    def _note(self, training: Training, seconds: float, planned: float) -> None:
        """Print the new number of epochs, if it differs enough from the one printed last.

        `planned`: seconds of a step by the plan.
        """
        total, before = training.total, self._noted
        if abs(total - before) <= _NOTED * training.stage.total_steps(training.steps):
            return
        reason = f"the time for {self.limits.stage} has changed"
        if abs(seconds / planned - 1) > _NOTED:
            reason = f"a step takes {seconds:.2g} s (planned: {planned:.2g} s)"
        change = "shortened" if total < before else "extended"
        earlier, later = before / training.steps, total / training.steps
        console.log(
            f"note: {reason}; {self.limits.stage} is {change} from {earlier:.3g} to "
            f"{counted(f'{later:.3g}', 'epoch')}"
        )
        self._noted = total


def plan_file(run: Path) -> Path:
    """Return the file of a run that stores its budget."""
    return Path(run) / "plan.json"
