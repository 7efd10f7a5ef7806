"""A stage that ends in time: on a machine that is slower, faster, or stopped for a while."""

import io
import math

import numpy as np
import pytest
import torch
from small_runs import differences, toy
from support import CPU, complaint

from tinynet.records import EpochRow
from tinynet.score.metrics import score
from tinynet.training.loop import Training, WeightGroup, fit
from tinynet.training.pace import Budget, Limits, plan_file
from tinynet.training.plans import Part
from tinynet.training.recipes import Stage

STEPS = 50  # in an epoch


class FakeClock:
    """A clock that a step of the training moves on."""

    def __init__(self, seconds):
        self.now, self.seconds = 1_000.0, seconds  # of a step, by its number

    def __call__(self):
        return self.now


def paced_training(monkeypatch, seconds, epochs=4.0, least=0.5, most=8.0, check=3.0):
    """A training of `epochs` whose steps are planned to take a second; what it does.

    The minutes are enough for what is planned.
    """
    clock, after, planned = FakeClock(seconds), 20.0, 1.0
    total = round(epochs * STEPS)
    own = total * planned + math.ceil(epochs) * check
    parts = [Part("finetune", "", own), Part("views", "", after)]
    minutes = (own + after) / 60 / 0.98
    limits = Limits("finetune", least, most, check)
    budget = Budget(minutes, parts, limits, 0.0, clock)
    stage = Stage(epochs=epochs, batch=8, lr=0.01, pct_start=0.1, ema=0.9)
    module = toy()
    training = Training(module, [WeightGroup(list(module.parameters()), 1)], stage, STEPS, CPU)
    pace = budget.pace("finetune")
    monkeypatch.setattr("tinynet.training.loop.FLUSH_AFTER", 0.0)

    def stream(epoch, start):
        generator = torch.Generator().manual_seed(epoch)
        for number in range(STEPS):
            batch = torch.randn(8, 6, generator=generator), torch.arange(8) % 3
            if number >= start:
                yield batch

    rates = []

    def evaluate(module):
        clock.now += check
        return score(np.log(np.full((8, 3), 1 / 3)), np.arange(8) % 3)

    for row in fit(training, stream, evaluate):
        if isinstance(row, EpochRow):
            pace.epoch_ended(training)
        else:
            rates.append(row.lr)
            clock.now += clock.seconds(row.step)
            pace.follow(training)
    return training, clock.now - 1_000.0, 60 * minutes, rates


@pytest.mark.parametrize("check", [3.0, 20.0, 60.0])
@pytest.mark.parametrize("step", [0.99, 1.0, 1.01])
def test_as_planned_nothing_changes(monkeypatch, capsys, check, step):
    """Also if an evaluation takes longer than an epoch, as with few images."""
    training, spent, budget, rates = paced_training(monkeypatch, lambda _: step, check=check)
    assert abs(training.total - 4 * STEPS) <= 0.04 * 4 * STEPS
    assert spent + 20 == pytest.approx(budget, rel=0.05)
    assert "note" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("slower", "word"), [(2.0, "shortened"), (0.5, "extended"), (1.25, "shortened")]
)
def test_another_rate_changes_the_end_and_it_is_said(monkeypatch, capsys, slower, word):
    training, spent, budget, rates = paced_training(monkeypatch, lambda step: slower)
    after = 20 * max(1.0, slower)  # what follows is slower too
    assert spent + after == pytest.approx(budget, rel=0.06)
    assert training.total_steps == training.total == len(rates)
    assert f"finetune is {word} from 4 to " in capsys.readouterr().err
    # the rate of learning rises to its maximum, and falls to the end
    assert max(rates) == pytest.approx(0.01, rel=0.1)
    peak = rates.index(max(rates))
    assert all(a >= b for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))
    assert rates[-1] < 0.1 * max(rates)


def test_a_machine_that_becomes_busy_shortens_the_stage(monkeypatch, capsys):
    training, spent, budget, _ = paced_training(monkeypatch, lambda step: 1.0 if step < 80 else 3.0)
    assert spent + 3 * 20 == pytest.approx(budget, rel=0.15) and training.total < 3 * STEPS
    assert "shortened" in capsys.readouterr().err


def test_a_stop_of_the_process_costs_what_it_took(monkeypatch):
    """100 s in one step, as under SIGSTOP; the rate of the other steps is not forgotten."""
    training, spent, budget, _ = paced_training(
        monkeypatch, lambda step: 100.0 if step == 60 else 1.0
    )
    assert spent + 20 == pytest.approx(budget, rel=0.15)
    assert 80 <= training.total <= 130


def test_a_stage_has_at_most_so_many_epochs(monkeypatch):
    training, *_ = paced_training(monkeypatch, lambda step: 0.1, most=5.0)
    assert training.total == 5 * STEPS


def test_a_training_with_another_end_goes_on_from_its_state():
    def training():
        stage = Stage(epochs=4.0, batch=8, lr=0.01, pct_start=0.1)
        module = toy()
        return Training(module, [WeightGroup(list(module.parameters()), 1)], stage, STEPS, CPU)

    def take(one, count):
        generator = torch.Generator().manual_seed(one.total_steps)
        for _ in range(count):
            one.train_batch(torch.randn(8, 6, generator=generator), torch.arange(8) % 3)

    whole = training()
    take(whole, 30)
    whole.end_at(45)
    take(whole, 5)
    state = whole.state_dict()
    state = torch.load(_saved(state), weights_only=True)
    other = training()
    other.load_state_dict(state)
    assert other.total == 45 and other.epoch_steps == 45
    for one in (whole, other):
        torch.set_rng_state(state["rng"])  # dropout
        take(one, 10)
    assert not differences(whole.state_dict(), other.state_dict())
    for bad in ([[0, 0.0]], [[9, 0.0], [3, 1.0], [1, 0.0]], [[0, 0.0], [3, 7.0], [9, 0.0]]):
        with pytest.raises(ValueError, match="schedule"):
            training().load_state_dict({**state, "corners": bad})


def _saved(state):
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return stream


def test_a_budget_is_read_again_without_the_time_between(tmp_path):
    clock = FakeClock(None)
    parts = [Part("base", "features", 60.0), Part("finetune", "2 epochs", 240.0)]
    budget = Budget(5.5, parts, Limits("finetune", 1.0, 8.0, 3.0), 12.0, clock)
    budget.begin("base")
    clock.now += 70
    budget.leave(tmp_path)
    clock.now += 10_000
    again = Budget.read(tmp_path, clock)
    assert again.spent == pytest.approx(82) and again.actual == {"base": 70.0}
    assert again.parts == budget.parts and again.pace("base") is None
    assert again.pace("finetune").end == pytest.approx(clock.now + 5.5 * 60 * 0.98 - 82)
    assert Budget.read(tmp_path / "none", clock) is None
    for text in ("{", "[]", '{"minutes": 3}', '{"minutes": "x", "parts": []}'):
        plan_file(tmp_path).write_text(text)
        complaint(lambda: Budget.read(tmp_path, clock), "plan.json", "restore it")


def budget_with_fixres(clock):
    """Six minutes, of which fixres is planned to take 100 s."""
    parts = [Part("finetune", "", 240.0), Part("fixres", "", 100.0)]
    return Budget(6, parts, Limits("finetune", 1.0, 8.0, 3.0), 0.0, clock)


def test_fixres_is_left_out_if_its_time_is_gone():
    clock = FakeClock(None)
    budget = budget_with_fixres(clock)
    clock.now += 270
    assert budget.begin("fixres")
    clock.now += 30
    assert not budget.begin("fixres") and budget.begin("finetune")
    assert budget.begin("fixres", started=True)


def test_a_stopped_fixres_needs_only_the_rest_of_its_time(tmp_path):
    clock = FakeClock(None)
    budget = budget_with_fixres(clock)
    clock.now += 250
    assert budget.begin("fixres")
    clock.now += 70
    budget.leave(tmp_path)
    assert Budget.read(tmp_path, clock).begin("fixres")  # 40 s are left for 30 s


def test_a_stage_is_never_shorter_than_its_least(monkeypatch):
    training, *_ = paced_training(monkeypatch, lambda step: 20.0, least=1.5)
    assert training.total == 1.5 * STEPS


def test_a_resumed_pace_knows_what_was_planned(monkeypatch):
    """Slower by half, stopped, resumed: what follows is still taken to be slower."""
    clock = FakeClock(lambda step: 2.0)
    parts = [Part("finetune", "", 200.0), Part("views", "", 20.0)]
    budget = Budget(4, parts, Limits("finetune", 0.5, 8.0, 0.0), 0.0, clock)
    stage = Stage(epochs=4.0, batch=8, lr=0.01, pct_start=0.1)
    ends, state = [], None
    for stopped_at in (40, None):
        module = toy()
        training = Training(module, [WeightGroup(list(module.parameters()), 1)], stage, STEPS, CPU)
        if state is not None:
            training.load_state_dict(state)
        pace = budget.pace("finetune")
        while training.total_steps < training.total and training.total_steps != stopped_at:
            training.train_batch(torch.randn(8, 6), torch.arange(8) % 3)
            clock.now += 2.0
            pace.follow(training)
            if training.step == STEPS:
                training.epoch, training.step = training.epoch + 1, 0
        state = training.state_dict()
        ends.append(training.total)
    assert abs(ends[0] - ends[1]) <= 0.05 * 200
    assert clock.now - 1_000.0 + 2 * 20 == pytest.approx(240 * 0.98, rel=0.05)
