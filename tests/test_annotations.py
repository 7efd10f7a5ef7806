"""Annotations are read as they are written, or refused in a line."""

from hypothesis import given
from hypothesis import strategies as st
from support import PLENTY

from tinynet.data.annotations import NO_BOX, as_text, by_stem, entry_of, read_annotations
from tinynet.errors import InputError

CLASSES = ("n00000001", "n00000002", "n00000003")


@PLENTY
@given(st.text(alphabet="val_0123.JPEGn\t\n -", max_size=120) | st.text(max_size=60))
def test_any_text_is_annotations_or_one_line(text):
    try:
        annotations = read_annotations(text, CLASSES)
    except ValueError as error:
        assert str(error).startswith("line ")
    else:
        assert all(wnid in CLASSES and len(box) == 4 for wnid, box in annotations.values())


boxes = st.tuples(*[st.integers(0, 63)] * 4).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)


@PLENTY
@given(
    st.dictionaries(
        st.integers(0, 99).map("val_{}.JPEG".format),
        st.tuples(st.sampled_from(CLASSES), boxes | st.none()),
        max_size=8,
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_annotations_are_read_as_they_are_written(entries, end, encoding):
    lines = ["\t".join([file, wnid, *map(str, box or ())]) for file, (wnid, box) in entries.items()]
    text = as_text(end.join([*lines, ""]).encode(encoding))
    annotations = read_annotations(text, CLASSES)
    assert annotations == {file: (wnid, box or NO_BOX) for file, (wnid, box) in entries.items()}
    for file, entry in annotations.items():
        again = file.replace("JPEG", "png")
        assert (
            entry_of(by_stem(annotations), f"val/images/{again}")
            == entry
            == entry_of(by_stem(annotations), file)
        )


@PLENTY
@given(st.binary(max_size=60))
def test_any_bytes_are_text_or_not(data):
    try:
        assert isinstance(as_text(data), str)
    except ValueError as error:
        assert not isinstance(error, InputError)
