"""Tables of rows."""

from tinynet.records import NOT_COMPARED
from tinynet.report.tables import table


def test_a_gain_stands_beside_its_interval():
    row = {"top1": 0.5, "gain": 0.01, "gain_low": -0.005, "gain_high": 0.025, "p": 0.2}
    text = table([row, {"top1": 0.4, **NOT_COMPARED.to_json()}])
    assert "+1.00%" in text and "-0.50% .. +2.50%" in text
