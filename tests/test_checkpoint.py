"""Checkpoints: models and trainings in files, and what is refused."""

import errno
import io
from pathlib import Path

import pytest
import torch
from small_runs import checkpoints, copy_run, differences, small_classifier, toy_training
from support import argv, complaint, refused

from tinynet import evaluate, predict, train
from tinynet.models.checkpoint import load_model, load_training, save_model, save_training
from tinynet.models.classifier import Classifier
from tinynet.models.vgg import VGG16

pytestmark = pytest.mark.usefixtures("thin")


# --- commands refuse broken checkpoints ---


@pytest.mark.parametrize(
    "content", [b"", b"no checkpoint", b"PK\x03\x04 half of one"], ids=["empty", "text", "zip"]
)
def test_a_checkpoint_that_is_none_is_refused(run_folder, content):
    copy_run("broken", -100)
    for path in Path("runs/broken").rglob("best.pt"):
        path.write_bytes(content)
    refused(evaluate, ["--device", "cpu"], "runs/broken/finetune/best.pt", "not a checkpoint")
    refused(predict, ["--device", "cpu"], "runs/broken/finetune/best.pt", "not a checkpoint")
    refused(
        train,
        argv("--stage finetune --run runs/broken --out more --device cpu"),
        "runs/broken/base/best.pt",
        "not a checkpoint",
    )


# --- models and trainings in files ---


WNIDS = ("n01", "n02", "n03", "n04", "n05", "n06")


@pytest.fixture
def checkpoint(tmp_path):
    save_model(tmp_path / "best.pt", small_classifier().eval(), WNIDS, 48)
    return tmp_path / "best.pt"


def test_a_model_is_loaded_as_it_was_saved(checkpoint):
    model, size = load_model(checkpoint, WNIDS)
    assert (
        size == 48 and not model.training and not any(module.training for module in model.modules())
    )
    assert not differences(model.state_dict(), small_classifier().state_dict())
    images = torch.rand(3, 3, 48, 48)
    assert torch.equal(model(images), small_classifier().eval()(images))


def test_normalisation_is_loaded_with_the_model(tmp_path):
    model = Classifier(VGG16((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), ("pool5:mean",), (), 6, 0.0, False)
    save_model(tmp_path / "best.pt", model, WNIDS, 32)
    assert load_model(tmp_path / "best.pt", WNIDS)[0].backbone.digest() == model.backbone.digest()


def test_classes_in_another_order_or_of_another_data_set_are_refused(checkpoint):
    complaint(
        lambda: load_model(checkpoint, WNIDS[::-1]), checkpoint, "another order", "training data"
    )
    complaint(
        lambda: load_model(checkpoint, ("m01", *WNIDS[1:])), checkpoint, "other classes (6, here 6)"
    )
    complaint(lambda: load_model(checkpoint, WNIDS[:-1]), checkpoint, "other classes (6, here 5)")


class Harmful:
    def __reduce__(self):
        return print, ("a pickle has run code",)


def test_what_is_no_checkpoint_is_refused_unread(checkpoint, tmp_path, capsys):
    whole = checkpoint.read_bytes()
    save_training(tmp_path / "last.pt", toy_training().state_dict(), WNIDS)
    contents = {
        "empty.pt": b"",
        "text.pt": b"no checkpoint at all",
        "short.pt": whole[: len(whole) // 2],
    }
    values = {
        "harmful.pt": {"format": 1, "kind": "model", "weights": Harmful()},
        "tensor.pt": torch.ones(2),
        "state.pt": small_classifier().state_dict(),
        "later.pt": {"format": 99, "kind": "model"},
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name, value in values.items():
        torch.save(value, tmp_path / name)
    for name in (*contents, *values, "last.pt", "missing.pt"):
        complaint(lambda name=name: load_model(tmp_path / name, WNIDS), name, "tinynet.train")
    complaint(lambda: load_training(checkpoint, WNIDS), "not a training checkpoint")
    assert "has run code" not in "".join(capsys.readouterr())


def test_checkpoints_hold_tensors_and_plain_values_only(whole_run):
    def kinds(value):
        if isinstance(value, dict):
            return {kind for pair in value.items() for part in pair for kind in kinds(part)}
        if isinstance(value, (list, tuple)):
            return {kind for part in value for kind in kinds(part)}
        return {type(value)}

    for content in checkpoints(whole_run).values():
        assert kinds(content) <= {torch.Tensor, str, int, float, bool, type(None)}
        assert content["wnids"] == sorted(content["wnids"]) and len(content["wnids"]) == 6


class FullDisk(io.RawIOBase):
    """A file on a disk with room for `room` bytes at once."""

    def __init__(self, room):
        self.room = room

    def writable(self):
        return True

    def write(self, data):
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)


@pytest.mark.parametrize(("numbers", "room"), [(10, 0), (100_000, 0), (100_000, 10_000)])
def test_a_full_disk_is_not_hidden_by_torch(tmp_path, monkeypatch, numbers, room):
    monkeypatch.setattr(
        "tinynet.files.open", lambda path, mode: io.BufferedWriter(FullDisk(room)), raising=False
    )
    with pytest.raises(OSError) as caught:
        save_training(
            tmp_path / "last.pt", {"one": torch.zeros(numbers), "two": torch.zeros(numbers)}, WNIDS
        )
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "last.pt")


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(checkpoint, monkeypatch):
    before = checkpoint.read_bytes()

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError):
        save_model(checkpoint, small_classifier(seed=1), WNIDS, 32)
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
