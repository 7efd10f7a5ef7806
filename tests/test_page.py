"""The page."""

from page_reader import PageReader

from tinynet.report.page import (
    Card,
    ClassRow,
    HardClass,
    HeatMap,
    LabelCheck,
    Pair,
    RunReport,
    Twin,
    write_page,
)
from tinynet.score.confusions import ClassAccuracy, ConfusedPair


def test_a_class_called_script_is_harmless(tmp_path):
    evil = '<script>alert("x")</script>'
    card = Card("data:,", f"val/{evil}.JPEG", evil, evil, 0.5, False)
    shown = RunReport(
        evil,
        answer=evil,
        facts=[(evil, evil)],
        names=[evil, "b", "c"],
        order=[0, 1, 2],
        counts=[(0, 1, 2)],
        classes=[ClassRow(ClassAccuracy(4, 0.1, 0.0, 0.2, 0, 1, 0.5), evil, evil, evil)],
        pairs=[Pair(ConfusedPair(0, 1, 1, 2), (evil, evil), [card])],
        missing=[evil],
        mistakes=[card],
        split="val",
        hardest=[HardClass(evil, 0.1, [card])],
        heats=[HeatMap(card, "data:,", 64, None, None)],
        label_checks=[LabelCheck(evil, evil, evil, 0.1, 0.8, "data:,")],
        label_counts={"val": (1, 4)},
        twins=[Twin("data:,", evil, evil, evil, evil)],
    )
    write_page(shown, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in html and "alert(" in html
    PageReader(tmp_path / "page.html")
