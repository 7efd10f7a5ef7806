"""The commands of tinynet.data."""

import json

from image_folders import draw_noise
from PIL import Image
from support import call

from tinynet.data import __main__ as data_command
from tinynet.data.copies import open_packed
from tinynet.data.synthetic import synthetic
from tinynet.data.tiny_imagenet import Archive


def command(*words):
    return call(data_command, *words)


def test_commands(archive_path, tmp_path):
    drawn = tmp_path / "d.zip"
    made = command(
        "synthetic", drawn, "--classes", 3, "--train", 4, "--val", 2, "--test", 1, "--side", 32
    )
    assert (made.status, made.out) == (0, f"{drawn}\n"), made.err
    checked = command("verify", "--data", drawn, "--json")
    assert checked.status == 0, checked.err
    assert {row["check"]: row["found"] for row in json.loads(checked.out)}["train images"] == 12
    packed = command("pack", "--data", drawn)
    assert packed.out == f"{tmp_path / 'cache' / f'd-{Archive(drawn).digest()[:8]}.packed'}\n"
    facts = {
        row["what"]: row["value"]
        for row in json.loads(command("info", "--data", drawn, "--json").out)
    }
    assert (
        facts["side"] == 32
        and facts["of train, hold-out"] == 3
        and facts["digest"] == Archive(drawn).digest()
    )
    shown = command("show", "--data", drawn, "--out", tmp_path / "s.png", "--split", "train")
    assert shown.status == 0 and shown.out == f"{tmp_path / 's.png'}\n", shown.err
    assert Image.open(tmp_path / "s.png").format == "PNG"


def test_what_is_written_is_named_in_json(tmp_path, capsys):
    drawn, sheet = tmp_path / "d.zip", tmp_path / "s.png"

    def named(*words):
        data_command.main([*map(str, words), "--json"])
        (row,) = json.loads(capsys.readouterr().out)
        return row["path"]

    assert named("synthetic", drawn, "--classes", 2, "--train", 2, "--val", 1, "--test", 1) == str(
        drawn
    )
    assert named("get", "--data", drawn) == str(drawn)
    assert named("show", "--data", drawn, "--out", sheet) == str(sheet)
    assert named("pack", "--data", drawn) == str(open_packed(drawn).folder)


def test_images_of_a_class_are_shown_by_part_of_its_name_and_as_augmented(tmp_path):
    drawn = synthetic(tmp_path / "d.zip", classes=3, train=4, val=2, test=1)
    archive = Archive(drawn)
    name = archive.names[1].split(",")[0]
    for flags in (["--class", name.upper()], ["--class", archive.wnids[1]], ["--recipe", "tuned"]):
        shown = command("show", "--data", drawn, "--out", tmp_path / "s.png", "--count", 2, *flags)
        assert shown.status == 0 and Image.open(tmp_path / "s.png").format == "PNG", shown.err
    for flags, words in (
        (["--class", name[:-1] + "zz"], name),
        (["--class", name, "--split", "test"], "no class"),
        (["--class", name, "--count", 5], "3 images"),
    ):
        bad = command("show", "--data", drawn, "--out", tmp_path / "no.png", *flags)
        assert bad.status == 2 and words in bad.err and len(bad.err.splitlines()) == 1, bad.err
    assert not (tmp_path / "no.png").exists()


def test_show_does_not_write_among_the_images(tmp_path, monkeypatch):
    for name in ("rose", "tulip"):
        for number in range(4):
            draw_noise(tmp_path / f"photos/{name}/{number}.png", (24, 20), number)
    monkeypatch.chdir(tmp_path / "photos")
    assert "pictures.png: is inside the data" in command("show", "--data", ".").err
    assert command("show", "--data", ".", "--out", "../pictures.png").status == 0
    assert (tmp_path / "pictures.png").is_file() and not list((tmp_path / "photos").glob("*.png"))
    ran = command("show", "--data", ".", "--split", "test", "--out", "../x.png")
    assert ran.status == 2 and "--split test: has no images" in ran.err


def test_cache_lists_and_clears_only_its_own(tmp_path):
    synthetic(tmp_path / "d.zip", classes=2, train=2, val=1, test=1)
    kept = open_packed(tmp_path / "d.zip").folder.name
    (tmp_path / "cache/other").mkdir()
    (tmp_path / "cache/other/manifest.json").write_text('{"manifest_version": 3}')
    listed = json.loads(command("cache", "--data", tmp_path / "d.zip", "--json").out)
    assert [(row["name"], row["kind"]) for row in listed] == [(kept, "packed")]
    cleared = command("cache", "--cache", tmp_path / "cache", "--clear")
    assert "1 folder removed" in cleared.err and kept in cleared.out
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["other"]


def test_command_statuses(folder, tmp_path):
    victim = sorted(folder.glob("val/images/*"))[0]
    victim.write_bytes(b"")
    wrong = command("verify", "--data", folder)
    assert wrong.status == 1 and victim.name in wrong.err and "WRONG" in wrong.out
    for words in (
        ["info", "--data", tmp_path / "none.zip"],
        ["get", "--fource"],
        [],
        ["show", "--data", folder, "--count", 1000, "--out", tmp_path / "no.png"],
    ):
        bad = command(*words)
        assert bad.status == 2 and not bad.out and len(bad.err.splitlines()) == 1, bad.err
    assert not (tmp_path / "no.png").exists()
