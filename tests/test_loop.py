"""The training loop, on a small module."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from small_runs import after, differences, small_classifier, toy_training
from support import CPU
from torch import nn
from torch.nn import functional as F

from tinynet.compute import Compute
from tinynet.models.checkpoint import load_training, save_training
from tinynet.records import EpochRow, Score, StepRow, StopRow
from tinynet.training.loop import Training, fit, weight_groups
from tinynet.training.recipes import Stage

pytestmark = pytest.mark.usefixtures("thin")


INPUTS = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 3


def toy_stream(epoch, start, batch=8):
    """Three batches an epoch, the last of them smaller."""
    for first in range(start * batch, 20, batch):
        yield INPUTS[first : first + batch], LABELS[first : first + batch]


def scored(top1=0.0, loss=0.0):
    return Score(
        n=20,
        top1=top1,
        top5=1.0,
        loss=loss,
        ece=0.0,
        low=0.0,
        high=1.0,
        balanced=top1,
        worst=0.0,
        worst_label=0,
    )


def run_toy(training, check=lambda module: scored(), after_step=lambda: None):
    def stop():
        after_step()
        return False

    return list(fit(training, toy_stream, check, stop))


def of_type(rows, kind):
    return [row for row in rows if isinstance(row, kind)]


def in_json(rows):
    return [row.to_json() for row in rows]


def test_a_row_is_yielded_for_every_step_and_epoch():
    rows = run_toy(toy_training(epochs=3))
    assert [(type(row), row.epoch, row.step) for row in rows] == [
        row
        for epoch in range(3)
        for row in [
            *((StepRow, epoch, 3 * epoch + step) for step in (1, 2, 3)),
            (EpochRow, epoch, 3 * epoch + 3),
        ]
    ]
    for epoch in of_type(rows, EpochRow):
        losses = [row.loss for row in of_type(rows, StepRow) if row.epoch == epoch.epoch]
        # a mean over images, not batches
        assert epoch.loss == pytest.approx(np.dot(losses, [8, 8, 4]) / 20)
        assert epoch.seconds > 0
        assert epoch.images_per_second == pytest.approx(20 / epoch.seconds)
    assert [type(row).from_json(json.loads(json.dumps(row.to_json()))) for row in rows] == rows


def test_rows_are_the_same_however_often_they_are_read(monkeypatch):
    late = in_json(run_toy(toy_training()))
    monkeypatch.setattr("tinynet.training.loop.FLUSH_AFTER", 0.0)
    assert not differences(in_json(run_toy(toy_training())), late)


def test_the_loss_is_cross_entropy_with_smoothed_labels():
    training = toy_training(label_smoothing=0.2)
    module = copy.deepcopy(training.module)
    torch.manual_seed(5)
    loss = training.train_batch(INPUTS[:8], LABELS[:8])
    torch.manual_seed(5)
    logp = torch.log_softmax(module.train()(INPUTS[:8]), 1)
    target = 0.8 * F.one_hot(LABELS[:8], 3) + 0.2 / 3
    assert loss.item() == pytest.approx(-(target * logp).sum(1).mean().item(), rel=1e-6)


def test_training_stops_when_patience_ends_and_remembers_the_best_epoch():
    script = [0.1, 0.3, 0.3, 0.2, 0.9]
    for patience, epochs in ((1, 3), (2, 4), (3, 5), (None, 5)):
        training, marks = toy_training(epochs=5, patience=patience), iter(script)
        rows = of_type(
            run_toy(training, lambda module, marks=marks: scored(next(marks), loss=0.5)), EpochRow
        )
        assert [row.holdout.top1 for row in rows] == script[:epochs]
        assert [row.improved for row in rows] == [True, True, False, False, True][:epochs]
        assert training.best == rows[4 if epochs == 5 else 1]
        assert training.best.holdout.loss == 0.5
        assert training.stale == (0 if epochs == 5 else patience)


def test_the_result_is_the_moving_average_of_the_weights_after_each_step():
    training, after, judged = toy_training(ema=0.8), [], []
    run_toy(
        training,
        lambda module: judged.append(module) or scored(),
        lambda: after.append([p.detach().clone() for p in training.module.parameters()]),
    )
    weights = after[:3] + after[4:7]  # an epoch's end asks once more
    average = weights[0]
    for now in weights[1:]:
        average = [0.8 * a + 0.2 * p for a, p in zip(average, now, strict=True)]
    result = list(training.result.parameters())
    assert all(module is training.result for module in judged)
    for found, expected, last in zip(result, average, weights[-1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        assert not torch.allclose(found, last, rtol=1e-3)


def test_the_batch_norms_of_an_average_are_computed_on_its_training_images():
    training, judged = toy_training(ema=0.8), []
    run_toy(training, lambda average: judged.append(average[2].running_mean.clone()) or scored())
    average = training.result
    hidden = [torch.relu(average[0](inputs)) for inputs, _ in toy_stream(1, 0)]
    mean, var = (
        torch.stack(found).mean(0)
        for found in ([h.mean(0) for h in hidden], [h.var(0) for h in hidden])
    )
    torch.testing.assert_close(average[2].running_mean, mean)
    torch.testing.assert_close(average[2].running_var, var)
    assert torch.equal(judged[1], average[2].running_mean)
    # those of the live network
    assert not torch.allclose(training.module[2].running_mean, mean, rtol=0.05)


def test_images_for_batch_norms_are_computed_in_float32():
    training, made, ran = toy_training(ema=0.8, compute=Compute(CPU.device, torch.bfloat16)), [], []
    run_toy(training)

    def inputs():
        made.append(
            torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        )
        yield INPUTS[:8]

    watched = training.result.register_forward_pre_hook(
        lambda *_: ran.append(torch.is_autocast_enabled("cpu"))
    )
    training.update_bn(inputs())
    watched.remove()
    assert made == [torch.float32] and ran == [True]


@pytest.mark.parametrize("group", ["conv5", "head"])
def test_the_batch_norms_of_an_average_stay_where_no_head_is_trained(group):
    stage = Stage(epochs=1, batch=8, schedule="constant", lr=0.01, trainable=(group,), ema=0.8)
    model = small_classifier()
    model.train_only(stage.trainable)
    training = Training(model, weight_groups(model, stage), stage, 3, CPU)
    before = [norm.running_var.clone() for norm in map(first_norm, (training.result, model))]
    training.update_bn([torch.rand(8, 3, 32, 32)])
    after = [norm.running_var for norm in map(first_norm, (training.result, model))]
    assert torch.equal(before[0], after[0]) == (group == "conv5")
    assert torch.equal(before[1], after[1])


def first_norm(model):
    """The first batch norm of a network's head."""
    return next(layer for layer in model.head if isinstance(layer, nn.BatchNorm1d))


def test_without_an_average_the_result_is_the_module():
    training = toy_training()
    assert training.result is training.module


def test_the_gradient_is_clipped_to_its_norm():
    def norms(clip):
        training, found = toy_training(max_grad_norm=clip), []
        run_toy(
            training,
            after_step=lambda: found.append(
                torch.stack([p.grad.norm() for p in training.module.parameters()]).norm().item()
            ),
        )
        return found

    assert min(norms(None)) > 0.05
    assert max(norms(0.05)) <= 0.05 * 1.0001
    assert not differences(norms(1e6), norms(None))


def test_weights_decay_and_biases_and_batch_norm_do_not():
    training = toy_training(weight_decay=0.3)
    decayed = {
        id(p)
        for group in training.optimizer.param_groups
        if group["weight_decay"]
        for p in group["params"]
    }
    everything = {id(p) for group in training.optimizer.param_groups for p in group["params"]}
    linear = [module.weight for module in training.module if isinstance(module, nn.Linear)]
    assert decayed == {id(weight) for weight in linear}
    assert everything == {id(p) for p in training.module.parameters()}

    # Without a gradient all that moves a weight is its decay.
    for weight_decay, share in ((0.3, (1 - 0.01 * 0.3) ** 6), (0.0, 1.0)):
        training = toy_training(weight_decay=weight_decay)
        before = training.module[0].weight.detach().clone()
        for inputs, labels in [*toy_stream(0, 0), *toy_stream(1, 0)]:
            training.train_batch(torch.zeros_like(inputs), labels)
        torch.testing.assert_close(training.module[0].weight, before * share, rtol=1e-6, atol=0)


def test_each_group_has_its_own_learning_rate_and_frozen_groups_have_none():
    model = small_classifier()
    model.train_only(("conv2", "conv5", "head"))
    stage = Stage(
        trainable=("conv2", "conv5", "head"),
        lr=0.1,
        weight_decay=0.2,
        schedule="constant",
        lr_factors=(1, 0.5, 1, 1, 0.25, 2),
    )
    training = Training(model, weight_groups(model, stage), stage, 3, CPU)
    rate = {
        id(p): group["lr"] for group in training.optimizer.param_groups for p in group["params"]
    }
    for name, weights in model.groups.items():
        expected = {"conv2": 0.05, "conv5": 0.025, "head": 0.2}.get(name)
        assert {rate.get(id(weight)) for weight in weights} == {expected}
    assert len(rate) == sum(p.requires_grad for p in model.parameters())


def test_the_schedule_moves_every_step_or_every_epoch():
    def lrs(every):
        stage = dict(schedule="cosine", schedule_every=every, epochs=4, lr=0.1, min_lr=0.01)
        return np.reshape(
            [row.lr for row in of_type(run_toy(toy_training(**stage)), StepRow)], (4, 3)
        )

    def cosine(move, moves):
        return 0.01 + 0.09 * (1 + math.cos(math.pi * move / moves)) / 2

    np.testing.assert_allclose(lrs("step").ravel(), [cosine(move, 12) for move in range(12)])
    np.testing.assert_allclose(lrs("epoch"), [[cosine(epoch, 4)] * 3 for epoch in range(4)])


def test_a_loss_that_is_no_number_ends_the_training():
    training = toy_training()

    def stream(epoch, start):
        yield INPUTS[:8], LABELS[:8]
        yield INPUTS[:8] * float("nan"), LABELS[:8]
        yield INPUTS[:8], LABELS[:8]

    with pytest.raises(FloatingPointError, match="step 2.*lower lr"):
        list(fit(training, stream, lambda module: scored()))


@pytest.mark.parametrize("schedule", ["cyclic", "onecycle", "cosine", "constant"])
@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_a_training_goes_on_exactly_from_its_checkpoint(schedule, kind, tmp_path):
    changes = dict(
        schedule=schedule,
        optimizer=kind,
        epochs=4,
        ema=0.9,
        weight_decay=0.1,
        max_grad_norm=1.0,
        patience=2,
    )
    whole = toy_training(**changes)
    torch.manual_seed(1)
    rows = run_toy(whole)
    assert len(of_type(rows, EpochRow)) == 3  # patience ends it
    for stop_at in range(1, 13):
        first = toy_training(**changes)
        torch.manual_seed(1)
        begun = list(fit(first, toy_stream, lambda module: scored(), after(stop_at)))
        save_training(tmp_path / "last.pt", first.state_dict(), ("a",))
        second = toy_training(**changes)
        torch.manual_seed(99)
        second.load_state_dict(load_training(tmp_path / "last.pt", ("a",)))
        ended = run_toy(second)
        assert isinstance(begun[-1], StopRow)
        assert not differences(second.state_dict(), whole.state_dict())
        assert not differences(in_json(begun[:-1] + ended), in_json(rows))


def test_ctrl_c_in_the_very_last_step_is_not_forgotten():
    training = toy_training(epochs=1)
    rows = list(fit(training, toy_stream, lambda module: scored(), after(3)))
    assert list(map(type, rows)) == [StepRow] * 3 + [EpochRow, StopRow]
