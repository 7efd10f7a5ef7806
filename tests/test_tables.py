"""Tables of rows."""

import csv
import io
import json

from tinynet.records import NOT_COMPARED
from tinynet.report.tables import cells, show, table, titled


def test_a_gain_stands_beside_its_interval():
    row = {"top1": 0.5, "gain": 0.01, "gain_low": -0.005, "gain_high": 0.025, "p": 0.2}
    text = table([row, {"top1": 0.4, **NOT_COMPARED.to_json()}])
    assert "+1.00%" in text and "-0.50% .. +2.50%" in text


GOLDFISH = "n01443537 goldfish, Carassius auratus"
EQUAL = {"top1": 0.5, "top5": 0.9, "balanced": 0.5 + 1e-16, "loss": 1.5}
UNEQUAL = {**EQUAL, "balanced": 0.4, "worst": 0.12, "worst_class": GOLDFISH}


def test_the_balanced_accuracy_has_a_column_only_where_it_differs_from_top_1():
    assert cells([EQUAL, EQUAL]) == [
        ["top-1", "top-5", "loss"],
        *[["50.00%", "90.00%", "1.500"]] * 2,
    ]
    early = {"top1": 0.3, "top5": 0.8, "loss": 2.0}
    assert cells([EQUAL, {**EQUAL, "balanced": 0.4}, early]) == [
        ["top-1", "top-5", "balanced accuracy", "loss"],
        ["50.00%", "90.00%", "50.00%", "1.500"],
        ["50.00%", "90.00%", "40.00%", "1.500"],
        ["30.00%", "80.00%", "", "2.000"],
    ]


def test_the_worst_class_stands_before_the_speed_and_is_sorted_by_its_accuracy():
    row = {**UNEQUAL, "forwards": 2, "pictures_per_second": 100.0}
    titles, ((*_, worst, speed),) = titled([row])
    middle = ["top-5", "balanced accuracy", "loss", "forwards", "worst class"]
    assert titles == ["top-1", *middle, "images/s"]
    assert worst == ("12.0% goldfish", 0.12) and speed == ("100", 100.0)
    unnamed = {key: value for key, value in row.items() if key != "worst_class"}
    assert "worst class" not in cells([unnamed])[0]


def test_the_name_of_the_worst_class_is_short():
    def name(worst_class):
        (_, ((_, (text, _)),)) = titled([{"top1": 1.0, "worst": 1.0, "worst_class": worst_class}])
        return text.removeprefix("100.0% ")

    assert name("n01443537") == "n01443537"  # no other name
    assert name("red fox") == "red fox"
    assert name("n02123045 tabby, tabby cat") == "tabby"
    assert name("n00000001 " + 24 * "a") == 24 * "a"
    assert name("n00000001 " + 25 * "a") == 21 * "a" + "..."
    assert name("n00000001 Brabancon griffon of the north") == "Brabancon griffon of..."


def test_csv_and_json_have_the_numbers_and_the_whole_name(capsys):
    show([EQUAL, UNEQUAL], "json")
    assert json.loads(capsys.readouterr().out) == [EQUAL, UNEQUAL]
    show([UNEQUAL], "csv")
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["worst_class"] == GOLDFISH and float(row["worst"]) == 0.12
    assert float(row["balanced"]) == 0.4
