"""The training loop: train a network on batches, and yield a row for each step and epoch."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tinynet.compute import Compute
from tinynet.console import advice, log, option
from tinynet.distributed import World, get_world
from tinynet.models.checkpoint import State
from tinynet.models.classifier import BN_IMAGES, Classifier, update_bn
from tinynet.models.depthwise import FastDepthwise, has_depthwise
from tinynet.models.global_batch import GlobalBatch, depends_on_batch
from tinynet.records import EpochRow, Json, LogRow, Score, StepRow, StopRow
from tinynet.training.recipes import Stage
from tinynet.training.schedules import Corner, linear, make_schedule, one_cycle, with_end

# Seconds between two transfers of losses to the CPU. A transfer waits for the device, so there is
# not one each step.
FLUSH_AFTER = 1.0

# (epoch, first batch) -> inputs and labels of the epoch's batches from this one on
EpochInputs = Callable[[int, int], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class WeightGroup:
    """Trainable weights, and the factor of their learning rate."""

    weights: list[nn.Parameter]
    factor: float


def weight_groups(model: Classifier, stage: Stage) -> list[WeightGroup]:
    """Return the weights that a stage trains; raises `InputError` if the network lacks a group."""
    factors = stage.rate_factors(list(model.groups))
    return [
        WeightGroup(model.groups[name], factors[name])
        for name in model.group_names(stage.trainable)
    ]


class Training:
    """The state of a training: everything that it changes, and that resuming needs.

    `module`: the network that is called on the inputs. `groups`: its trainable weights. `steps`:
    batches in an epoch.

    Attributes: `epoch` counts the finished epochs, `step` the finished steps of the present epoch.
    `seen` and `loss_sum`: the images trained on in this epoch, and the sum of their losses.
    `seconds`: the training time of this epoch. `best`: the row of the best epoch so far. `stale`:
    the number of epochs since. `total`: the number of steps of the stage.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Sequence[WeightGroup],
        stage: Stage,
        steps: int,
        compute: Compute,
    ):
        self.module, self.stage, self.steps, self.compute = module, stage, steps, compute
        self.total = stage.total_steps(steps)
        self.corners: list[Corner] | None = None  # of the schedule, once its end has changed
        self.optimizer = _make_optimizer(groups, stage, compute)
        self.schedule = make_schedule(self.optimizer, stage, steps)
        self.scaler, self.world = compute.scaler(), get_world()
        # A smaller last batch runs without compilation: another shape would make torch discard
        # the first graph.
        self._parallel = _parallel(module, self.world)
        self._compiled: Callable[[Tensor], Tensor] = self._parallel
        if compute.compiled:
            self._compiled = _compiled(module, self._parallel, self.world)
        in_bfloat16 = (compute.device.type, compute.dtype) == ("cpu", torch.bfloat16)
        self._convolutions: Callable[[], AbstractContextManager] = (
            FastDepthwise
            if in_bfloat16 and not compute.compiled and has_depthwise(module)
            else nullcontext
        )
        self.average = (
            AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(stage.ema))
            if stage.ema
            else None
        )
        if self.average is not None:  # listing the tensors takes a tenth of a small step
            self._average_tensors = _tensors(self.average.module)
            self._live_tensors = _tensors(module)
        self.epoch = self.step = self.stale = self.seen = 0
        self.loss_sum = self.seconds = 0.0
        self.best: EpochRow | None = None

    @property
    def result(self) -> nn.Module:
        """The network to evaluate and save: the moving average, if there is one."""
        return self.module if self.average is None else self.average.module

    @property
    def total_steps(self) -> int:
        """The number of finished steps of the stage."""
        return min(self.epoch * self.steps + self.step, self.total)

    def end_at(self, total: int) -> None:
        """End the stage after `total` steps in all; the learning rate then falls to its end.

        The stage has the schedule `cyclic`, one cycle long. At least one step remains, unless the
        present step is the last of an epoch.
        """
        assert total > self.total_steps - (self.step == self.steps)
        corners = self.corners or one_cycle(self.stage, self.steps)
        self._follow(with_end(corners, self.total_steps, total))

    def _follow(self, corners: list[Corner]) -> None:
        """Replace the schedule by the one of `corners`, at the present step."""
        step = self.total_steps
        self.corners, self.total = corners, corners[-1][0]
        self.schedule = linear(self.optimizer, self.stage, corners, step)

    @property
    def epoch_steps(self) -> int:
        """The number of steps of the current epoch; the last one may be shorter."""
        return min(self.steps, self.total - self.epoch * self.steps)

    _PLAIN = ("epoch", "step", "stale", "seen", "loss_sum", "seconds")
    _STATEFUL = ("module", "optimizer", "schedule", "scaler", "average")

    def state_dict(self) -> State:
        """Return tensors and plain values that continue this training, random state included.

        On a CPU the continued training is bit-identical. A GPU may add in another order.
        """
        state: State = {name: getattr(self, name) for name in self._PLAIN}
        state["best"] = None if self.best is None else self.best.to_json()
        if self.corners is not None:
            state["corners"] = [list(corner) for corner in self.corners]
        state |= {
            name: getattr(self, name).state_dict()
            for name in self._STATEFUL
            if getattr(self, name) is not None
        }
        state["rng"] = torch.get_rng_state()
        if source := self._device_random():
            state["device_rng"] = {self.compute.device.type: source.get_rng_state()}
        return state

    def load_state_dict(self, state: State) -> None:
        """Continue from `state`.

        Raises `ValueError`, `KeyError` and others if the state belongs to another training.
        """
        self._check(state)
        corners = _read_corners(state["corners"]) if "corners" in state else None
        if corners:  # first, because the steps so far may be more than the recipe's
            self.total = corners[-1][0]
        for name in self._PLAIN:
            setattr(self, name, state[name])
        self.best = None if state["best"] is None else EpochRow.from_json(state["best"])
        if corners:
            self._follow(corners)
        # Building a schedule sets the rates (pytorch#65342), so the optimizer's state is loaded
        # after the schedule's.
        schedule = self._schedule_state(state)
        for name in ("module", "schedule", "optimizer", "scaler", "average"):
            # A state of another precision has no state of a scaler.
            other_precision = name == "scaler" and not state[name]
            if getattr(self, name) is not None and not other_precision:
                getattr(self, name).load_state_dict(schedule if name == "schedule" else state[name])
        self._check_moments()
        torch.set_rng_state(state["rng"])
        random = state.get("device_rng", {}).get(self.compute.device.type)
        if random is not None:  # None: saved on another kind of device
            self._device_random().set_rng_state(random)

    def _check(self, state: State) -> None:
        """Raise `ValueError` unless the plain values of `state` are possible for this stage."""
        for name in ("epoch", "step", "stale", "seen"):
            if not isinstance(state[name], int) or isinstance(state[name], bool) or state[name] < 0:
                raise ValueError(f"{name} is {str(state[name])[:40]}")
        if not all(math.isfinite(state[name]) for name in ("loss_sum", "seconds")):
            raise ValueError("loss_sum or seconds is not finite")
        if state["step"] > self.steps:
            raise ValueError(f"step {state['step']} of {self.steps}")
        if state["best"] is not None and not isinstance(
            state["best"]["holdout"]["top1"], (int, float)
        ):
            raise ValueError("the best epoch has no score")

    def _check_moments(self) -> None:
        """Raise `ValueError` if the optimizer's state does not have the shapes of its weights.

        Torch does not check them, and would write out of bounds.
        """
        for group in self.optimizer.param_groups:
            if not all(math.isfinite(group[name]) for name in ("lr", "weight_decay", "factor")):
                raise ValueError("a learning rate or weight decay is not finite")
            for weight in group["params"]:
                for name, value in self.optimizer.state.get(weight, {}).items():
                    shape = torch.Size() if name == "step" else weight.shape
                    if (
                        not isinstance(value, Tensor)
                        or value.shape != shape
                        or not value.is_floating_point()
                    ):
                        raise ValueError(
                            f"the optimizer's {name} does not have the shape of its weights"
                        )

    def _schedule_state(self, state: State) -> State:
        """The state of this stage's schedule, at the step of `state`.

        Raises `ValueError` if the schedule in `state` is at another step.
        """
        schedule = {
            name: state["schedule"][name] for name in ("last_epoch", "_step_count", "_last_lr")
        }
        every_step = self.stage.schedule_every == "step"
        moves = state["epoch"]
        if every_step:
            moves = min(moves * self.steps + state["step"], self.total)
        if schedule["last_epoch"] != moves or not isinstance(schedule["_step_count"], int):
            raise ValueError(
                f"the schedule is at step {str(schedule['last_epoch'])[:40]}, the training at "
                f"{moves}"
            )
        if not all(map(math.isfinite, schedule["_last_lr"])):
            raise ValueError("a learning rate is not finite")
        return self.schedule.state_dict() | schedule

    def _device_random(self) -> Any:
        """The torch module that holds the device's random state; None for the CPU."""
        return {"cuda": torch.cuda, "mps": torch.mps}.get(self.compute.device.type)

    def train_batch(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Take one optimizer step; return the mean loss of the batch, a scalar on the device.

        `inputs`, `labels`: this rank's share of the batch.
        """
        count = self._images(labels, last=self.step + 1 >= self.steps)
        module = self._compiled if count == self.stage.batch else self._parallel
        with self.compute.autocast(), self._convolutions(), self.of_batch(count):
            logits = module(self._filled(inputs))
        loss = self._loss(logits.float()[: len(labels)], labels, count)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.stage.max_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            weights = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(weights, self.stage.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self._move_average()
        if self.stage.schedule_every == "step":
            self.schedule.step()
        self.step += 1
        self.seen += count
        if self.world.size == 1:
            return loss.detach()
        return self.world.sum(loss.detach()) / self.world.size

    def _images(self, share: Tensor, last: bool = True) -> int:
        """The images of the whole batch; only the `last` of an epoch can have another size."""
        if self.world.size == 1:
            return len(share)
        if not last:
            return self.stage.batch
        return int(self.world.sum(torch.tensor(len(share))))

    def _loss(self, logits: Tensor, labels: Tensor, count: int) -> Tensor:
        """The loss whose mean over the ranks is the mean loss of all `count` images."""
        smoothing = self.stage.label_smoothing
        if self.world.size == 1:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        total = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
        return total * (self.world.size / count)

    def _filled(self, share: Tensor) -> Tensor:
        """The share, or an image that does not count: transformers do not take an empty batch."""
        return share if len(share) else share.new_zeros(1, *share.shape[1:])

    def of_batch(self, count: int) -> AbstractContextManager:
        """A context of forward passes on this rank's share of a batch of `count` images."""
        return nullcontext() if self.world.size == 1 else GlobalBatch(self.world, count)

    def update_bn(self, inputs: Iterable[Tensor]) -> None:
        """Update the batch norm statistics of the moving average on the first of these batches.

        The average has the statistics of the live network, which do not fit its weights (Izmailov
        et al. 2018). The next step copies those again, so this does not affect training.
        """
        if self.average is not None:
            batches = islice(inputs, math.ceil(BN_IMAGES / self.stage.batch))
            if self.world.size == 1:
                update_bn(self.average.module, batches, self.compute.autocast)
                return
            counts: list[int] = []  # of the present batch

            def filled() -> Iterator[Tensor]:
                for batch in batches:
                    counts[:] = [self._images(batch)]
                    yield self._filled(batch)

            @contextmanager
            def context() -> Iterator[None]:
                with self.compute.autocast(), self.of_batch(counts[0]):
                    yield

            update_bn(self.average.module, filled(), context, least=1)

    @torch.no_grad()
    def _move_average(self) -> None:
        """Do what `AveragedModel.update_parameters` does, without waiting for the device.

        Torch's method sends its count to the device at every step.
        """
        average = self.average
        assert average is not None
        assert average.multi_avg_fn is not None
        parameters, buffers = self._average_tensors
        live_parameters, live_buffers = self._live_tensors
        if average.n_averaged:
            average.multi_avg_fn(parameters, live_parameters, average.n_averaged)
        else:
            torch._foreach_copy_(parameters, live_parameters)
        for buffer, live_buffer in zip(buffers, live_buffers, strict=True):
            buffer.copy_(live_buffer)
        average.n_averaged += 1


def _read_corners(value: Any) -> list[Corner]:
    """The corners of a schedule in a training state; raises `ValueError` for impossible ones."""
    corners = [(step, rate) for step, rate in value]
    steps = [step for step, _ in corners]
    if not all(isinstance(step, int) and step >= 0 for step in steps) or steps != sorted(steps):
        raise ValueError(f"the steps of the schedule are {str(steps)[:40]}")
    if len(corners) < 3 or not all(0 <= rate <= 1 for _, rate in corners):
        raise ValueError("the schedule has other corners")
    return corners


def _parallel(module: nn.Module, world: World) -> nn.Module:
    """The module, with gradients that are averaged over all ranks."""
    if world.size == 1:
        return module
    with warnings.catch_warnings():
        # Of the argument's new name, which torch 2.6 does not know.
        warnings.simplefilter("ignore", FutureWarning)
        # Batch norms have the statistics of all images on every rank already. Layers of a backbone
        # that no feature needs get no gradient; with a static graph, they are found once.
        return nn.parallel.DistributedDataParallel(
            module, broadcast_buffers=False, static_graph=True
        )


def _compiled(module: nn.Module, parallel: nn.Module, world: World) -> Callable[[Tensor], Tensor]:
    """The compiled network; with several ranks its backbone alone is compiled.

    Torch cannot compile layers that add over the ranks. So nothing is compiled, and a note says so,
    if the backbone has one, or is not trained and the module is the head alone.
    """
    if world.size == 1:
        return cast(Callable[[Tensor], Tensor], torch.compile(parallel, dynamic=False))
    if not isinstance(module, Classifier) or depends_on_batch(module.backbone):
        log(
            f"note: {option('compile')}: these layers add over the processes, so they are not "
            "compiled"
        )
        return parallel
    backbone = module.backbone
    forward = torch.compile(backbone.forward, dynamic=False)

    def step(images: Tensor) -> Tensor:
        # Only in full steps: a batch of another shape would be compiled anew.
        backbone.forward = forward  # type: ignore[method-assign]
        try:
            return cast(Tensor, parallel(images))
        finally:
            del backbone.forward

    return step


def _tensors(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters and the buffers of a module."""
    return list(module.parameters()), list(module.buffers())


def fit(
    training: Training,
    stream: EpochInputs,
    check: Callable[[nn.Module], Score],
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[LogRow]:
    """Train to the end of the stage; yield the rows of the log.

    `stream(epoch, start)` yields the inputs and labels of an epoch from batch `start` on.
    `check(module)` evaluates the network on the hold-out after an epoch. `stop()` is called after
    every step; training stops when it returns True.

    The rows are a `StepRow` for each step, an `EpochRow` for each epoch, and a `StopRow` if
    training stops early. Raises `FloatingPointError` if a loss is not finite.
    """
    stage = training.stage
    while training.epoch_steps > 0 and not (stage.patience and training.stale >= stage.patience):
        if training.step == 0:
            training.seen, training.loss_sum, training.seconds = 0, 0.0, 0.0
        training.module.train()
        yield from _run_epoch(training, stream, stop)
        if training.step < training.epoch_steps:
            yield StopRow(training.epoch, training.total_steps)
            return
        training.update_bn(inputs for inputs, _ in stream(training.epoch, 0))
        yield _finish_epoch(training, check)
        training.world.barrier()  # rank 0 has written the best network
        (stopped,) = training.world.agree(stop())
        if stopped:  # after the last epoch too, else the next stage would start
            yield StopRow(training.epoch, training.total_steps)
            return


@dataclass(frozen=True)
class _PendingStep:
    """A step of `count` images whose loss is still on the device."""

    step: int
    lr: float
    count: int
    loss: Tensor


def _run_epoch(
    training: Training, stream: EpochInputs, stop: Callable[[], bool]
) -> Iterator[StepRow]:
    """Train the remaining steps of an epoch; yield their rows in bursts."""
    pending: list[_PendingStep] = []
    since = time.perf_counter()

    def flush() -> list[StepRow]:
        nonlocal since
        rows = _fetch_losses(pending, training)
        pending.clear()
        training.seconds, since = (
            training.seconds + time.perf_counter() - since,
            time.perf_counter(),
        )
        return rows

    left = training.epoch_steps - training.step
    batches = stream(training.epoch, training.step) if left > 0 else ()
    for number, (inputs, labels) in enumerate(batches):
        if not number:
            training.world.barrier()  # rank 0 has written a checkpoint; all have loaded images
        group = training.optimizer.param_groups[-1]
        rate = group["lr"] / group["factor"]
        images_before = training.seen
        loss = training.train_batch(inputs, labels)
        pending.append(
            _PendingStep(training.total_steps, rate, training.seen - images_before, loss)
        )
        due = training.world.main and time.perf_counter() - since > FLUSH_AFTER
        stopped, due = training.world.agree(stop(), due)
        if stopped:
            break
        if due:
            yield from flush()
            training.world.barrier()  # rank 0 may have written a checkpoint
            since = time.perf_counter()  # the caller's work on the rows is not training time
        if training.step >= training.epoch_steps:  # the caller may have changed the end
            break
    yield from flush()


def _fetch_losses(steps: Sequence[_PendingStep], training: Training) -> list[StepRow]:
    """Return the rows of `steps` of the present epoch, and add the losses to the epoch's sum."""
    training.compute.wait(training.world.check)
    losses = torch.stack([step.loss for step in steps]).tolist() if steps else []
    rows = []
    for step, loss in zip(steps, losses, strict=True):
        if loss != loss or loss == float("inf"):
            rate = advice(f"lower {option('lr')}, or ")
            raise FloatingPointError(
                f"the loss is {loss} at step {step.step} (learning rate {step.lr:.3g}); "
                f"{rate}use {option('precision')} float32"
            )
        training.loss_sum += loss * step.count
        rows.append(StepRow(training.epoch, step.step, step.lr, loss))
    return rows


def _finish_epoch(training: Training, check: Callable[[nn.Module], Score]) -> EpochRow:
    """Evaluate the network and return the row of the epoch."""
    if training.stage.schedule_every == "epoch":
        training.schedule.step()
    score = check(training.result)
    improved = training.best is None or score.top1 > training.best.holdout.top1
    row = EpochRow(
        epoch=training.epoch,
        step=training.total_steps,
        loss=training.loss_sum / max(1, training.seen),
        seconds=training.seconds,
        images_per_second=training.seen / max(training.seconds, 1e-9),
        improved=improved,
        holdout=score,
    )
    training.stale = 0 if improved else training.stale + 1
    if improved:
        training.best = row
    training.epoch, training.step = training.epoch + 1, 0
    return row


def _make_optimizer(
    groups: Sequence[WeightGroup], stage: Stage, compute: Compute
) -> torch.optim.Optimizer:
    """An optimizer with the rate of each group; biases and batch norms have no weight decay."""
    settings: list[Json] = []
    for group in groups:
        for decayed in (True, False):
            weights = [weight for weight in group.weights if (weight.ndim > 1) == decayed]
            if weights:
                settings.append(
                    {
                        "params": weights,
                        "factor": group.factor,
                        "lr": stage.lr * group.factor,
                        "weight_decay": stage.weight_decay if decayed else 0.0,
                    }
                )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[stage.optimizer]
    return kind(settings, lr=stage.lr, fused=compute.device.type in ("cpu", "cuda"))
