"""The training loop: takes a network, batches and a stage, yields a row per step and epoch."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tinynet.compute import Compute
from tinynet.console import advice
from tinynet.models.classifier import FOR_STATISTICS, update_bn
from tinynet.training.recipes import ALL_GROUPS, Stage
from tinynet.training.schedules import make_schedule

_FLUSH_AFTER = 1.0  # seconds: reading a loss waits for the device, so it is not done every step

Stream = Callable[[int, int], Iterable[tuple[Tensor, Tensor]]]


class Training:
    """Everything that training changes, and so everything that resuming needs.

    `module`: what is called on the inputs. `groups`: the groups of the network that learn, by name.
    `steps`: batches an epoch. `epoch` and `step` count what is finished; `best` is the row of the
    best epoch so far, `stale` the number of epochs since.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Mapping[str, list[nn.Module]],
        stage: Stage,
        steps: int,
        compute: Compute,
    ):
        self.module, self.stage, self.steps, self.compute = module, stage, steps, compute
        self.optimizer = _make_optimizer(groups, stage, compute)
        self.schedule = make_schedule(self.optimizer, stage, steps)
        self.scaler = compute.scaler()
        # A smaller last batch is not worth another graph, and its shape would make torch give up
        # the first one.
        self._runs = torch.compile(module, dynamic=False) if compute.compiled else module
        self.average = (
            AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(stage.ema))
            if stage.ema
            else None
        )
        if self.average is not None:  # walking over a network takes a tenth of a small step
            self._averaged = [
                (list(of.parameters()), list(of.buffers())) for of in (self.average.module, module)
            ]
        self.epoch = self.step = self.stale = self.seen = 0
        self.loss_sum = self.seconds = 0.0
        self.best: dict[str, Any] | None = None

    @property
    def result(self) -> nn.Module:
        """The network to judge and keep: the moving average where there is one."""
        return self.module if self.average is None else self.average.module

    @property
    def total_steps(self) -> int:
        """Steps finished since the stage began."""
        return self.epoch * self.steps + self.step

    _PLAIN = ("epoch", "step", "stale", "seen", "loss_sum", "seconds", "best")
    _STATEFUL = ("module", "optimizer", "schedule", "scaler", "average")

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that continue this training, random state included.

        On a CPU it ends with the same bits; a GPU may add in another order.
        """
        state: dict[str, Any] = {name: getattr(self, name) for name in self._PLAIN}
        state |= {
            name: getattr(self, name).state_dict()
            for name in self._STATEFUL
            if getattr(self, name) is not None
        }
        state["rng"] = torch.get_rng_state()
        if source := self._device_random():
            state["device_rng"] = {self.compute.device.type: source.get_rng_state()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; raises `ValueError`, `KeyError` and others where that is another
        training's.
        """
        self._check(state)
        for name in self._PLAIN:
            setattr(self, name, state[name])
        # Building a schedule sets the rates (pytorch#65342): the optimizer's state comes after the
        # schedule's.
        schedule = self._schedule_state(state)
        for name in ("module", "schedule", "optimizer", "scaler", "average"):
            other_precision = name == "scaler" and not state[name]  # which has no state
            if getattr(self, name) is not None and not other_precision:
                getattr(self, name).load_state_dict(schedule if name == "schedule" else state[name])
        self._check_moments()
        torch.set_rng_state(state["rng"])
        random = state.get("device_rng", {}).get(self.compute.device.type)
        if random is not None:  # another kind of device has another state
            self._device_random().set_rng_state(random)

    def _check(self, state: dict[str, Any]) -> None:
        """Raise `ValueError` unless the plain values of `state` are those of a training of this
        stage.
        """
        for name in ("epoch", "step", "stale", "seen"):
            if not isinstance(state[name], int) or isinstance(state[name], bool) or state[name] < 0:
                raise ValueError(f"{name} is {str(state[name])[:40]}")
        if not all(math.isfinite(state[name]) for name in ("loss_sum", "seconds")):
            raise ValueError("sums that are no numbers")
        if state["step"] > self.steps:
            raise ValueError(f"step {state['step']} of {self.steps}")
        if state["best"] is not None and not isinstance(
            state["best"]["holdout"]["top1"], (int, float)
        ):
            raise ValueError("a best epoch without a score")

    def _check_moments(self) -> None:
        """Raise `ValueError` where the optimizer's state does not fit its weights; torch would
        write beyond it.
        """
        for group in self.optimizer.param_groups:
            if not all(math.isfinite(group[name]) for name in ("lr", "weight_decay", "factor")):
                raise ValueError("rates that are no numbers")
            for weight in group["params"]:
                for name, value in self.optimizer.state.get(weight, {}).items():
                    wanted = torch.Size() if name == "step" else weight.shape
                    if (
                        not isinstance(value, Tensor)
                        or value.shape != wanted
                        or not value.is_floating_point()
                    ):
                        raise ValueError(
                            f"the optimizer's {name} has another shape than its weights"
                        )

    def _schedule_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """The schedule of this stage, as far as the training of `state` is.

        Raises `ValueError` where its schedule is elsewhere.
        """
        stored = {
            name: state["schedule"][name] for name in ("last_epoch", "_step_count", "_last_lr")
        }
        every_step = self.stage.schedule_every == "step"
        moves = state["epoch"] * self.steps + state["step"] if every_step else state["epoch"]
        if stored["last_epoch"] != moves or not isinstance(stored["_step_count"], int):
            raise ValueError(
                f"the schedule has moved {str(stored['last_epoch'])[:40]} times, the training "
                f"{moves}"
            )
        if not all(map(math.isfinite, stored["_last_lr"])):
            raise ValueError("rates that are no numbers")
        return self.schedule.state_dict() | stored

    def _device_random(self) -> Any:
        """Where the device's own random state lives; the CPU's is torch's."""
        return {"cuda": torch.cuda, "mps": torch.mps}.get(self.compute.device.type)

    def learn(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One step of the optimizer; returns the mean loss of the batch, on the device."""
        runs = self._runs if len(labels) == self.stage.batch else self.module
        with self.compute.autocast():
            logits = runs(inputs)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.stage.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.stage.max_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            learning = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(learning, self.stage.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self._move_average()
        if self.stage.schedule_every == "step":
            self.schedule.step()
        self.step += 1
        self.seen += len(labels)
        return loss.detach()

    def update_bn(self, inputs: Iterable[Tensor]) -> None:
        """Measure the batch norms of the moving average on the first of these batches of inputs.

        The statistics that training leaves are the live network's, which the average is not
        (Izmailov et al. 2018). They are copied again at the next step, so nothing here changes what
        is learnt.
        """
        if self.average is not None and "head" in self.stage.trainable:
            some = islice(inputs, math.ceil(FOR_STATISTICS / self.stage.batch))
            update_bn(self.average.module, some, self.compute.autocast)

    @torch.no_grad()
    def _move_average(self) -> None:
        """As `AveragedModel.update_parameters`, which sends its count to the device at every step
        and waits for it.
        """
        (parameters, buffers), (live_parameters, live_buffers) = self._averaged
        if self.average.n_averaged:
            self.average.multi_avg_fn(parameters, live_parameters, self.average.n_averaged)
        else:
            torch._foreach_copy_(parameters, live_parameters)
        for mine, theirs in zip(buffers, live_buffers, strict=True):
            mine.copy_(theirs)
        self.average.n_averaged += 1


def fit(
    training: Training,
    stream: Stream,
    check: Callable[[nn.Module], dict[str, Any]],
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, Any]]:
    """Train to the end of the stage, yielding rows as they come.

    `stream(epoch, start)` yields inputs and labels of an epoch from batch `start` on.
    `check(module)` judges the network after an epoch and returns at least `top1`. `stop()` is asked
    after every step. Rows have `kind`: `step` (`epoch`, `step`, `lr`, `loss`), `epoch` (mean
    `loss`, `seconds`, `pictures_per_second`, `improved`, and what `check` returned as `holdout`),
    or `stopped`. Raises `FloatingPointError` when the loss is no longer finite.
    """
    stage = training.stage
    while training.epoch < stage.epochs and not (
        stage.patience and training.stale >= stage.patience
    ):
        if training.step == 0:
            training.seen, training.loss_sum, training.seconds = 0, 0.0, 0.0
        training.module.train()
        yield from _run_epoch(training, stream, stop)
        if training.step < training.steps:
            yield {"kind": "stopped", "epoch": training.epoch, "step": training.total_steps}
            return
        training.update_bn(inputs for inputs, _ in stream(training.epoch, 0))
        yield _finish_epoch(training, check)
        if stop():  # after the last epoch too, else a stage that follows would begin
            yield {"kind": "stopped", "epoch": training.epoch, "step": training.total_steps}
            return


def _run_epoch(
    training: Training, stream: Stream, stop: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    since = time.perf_counter()

    def flush() -> list[dict[str, Any]]:
        nonlocal since
        for row, loss in zip(
            rows, torch.stack([row["loss"] for row in rows]).tolist() if rows else [], strict=True
        ):
            if loss != loss or loss == float("inf"):
                rate = advice("lower --lr, or ")
                raise FloatingPointError(
                    f"the loss is {loss} at step {row['step']} (rate {row['lr']:.3g}); "
                    f"{rate}use --precision float32"
                )
            row["loss"] = loss
            training.loss_sum += loss * row.pop("n")
        done, rows[:] = list(rows), []
        training.seconds, since = (
            training.seconds + time.perf_counter() - since,
            time.perf_counter(),
        )
        return done

    for inputs, labels in stream(training.epoch, training.step):
        group = training.optimizer.param_groups[-1]
        rate = group["lr"] / group["factor"]
        loss = training.learn(inputs, labels)
        rows.append(
            {
                "kind": "step",
                "epoch": training.epoch,
                "step": training.total_steps,
                "lr": rate,
                "loss": loss,
                "n": len(labels),
            }
        )
        if stop():
            break
        if time.perf_counter() - since > _FLUSH_AFTER:
            yield from flush()
            since = time.perf_counter()  # what the caller did with the rows is not training time
    yield from flush()


def _finish_epoch(
    training: Training, check: Callable[[nn.Module], dict[str, Any]]
) -> dict[str, Any]:
    if training.stage.schedule_every == "epoch":
        training.schedule.step()
    held = check(training.result)
    improved = training.best is None or held["top1"] > training.best["holdout"]["top1"]
    row = {
        "kind": "epoch",
        "epoch": training.epoch,
        "step": training.total_steps,
        "loss": training.loss_sum / max(1, training.seen),
        "seconds": training.seconds,
        "pictures_per_second": training.seen / max(training.seconds, 1e-9),
        "improved": improved,
        "holdout": held,
    }
    training.stale = 0 if improved else training.stale + 1
    if improved:
        training.best = row
    training.epoch, training.step = training.epoch + 1, 0
    return row


def _make_optimizer(
    groups: Mapping[str, list[nn.Module]], stage: Stage, compute: Compute
) -> torch.optim.Optimizer:
    """Settings for each group and kind of weight: biases and batch norm are not decayed."""
    factors = dict(zip(ALL_GROUPS, stage.lr_factors, strict=True))
    settings: list[dict[str, Any]] = []
    for name, modules in groups.items():
        trainable = [p for module in modules for p in module.parameters() if p.requires_grad]
        for decayed in (True, False):
            weights = [p for p in trainable if (p.ndim > 1) == decayed]
            if weights:
                settings.append(
                    {
                        "params": weights,
                        "factor": factors[name],
                        "lr": stage.lr * factors[name],
                        "weight_decay": stage.weight_decay if decayed else 0.0,
                    }
                )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[stage.optimizer]
    return kind(settings, lr=stage.lr, fused=compute.device.type in ("cpu", "cuda"))
