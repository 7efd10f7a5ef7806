"""The result of a verification: rows of figures, and lines about images and pairs of images."""

from collections.abc import Sequence
from dataclasses import dataclass

_MAX_LINES = 20  # to list one by one

# Two file names, and whether their labels differ (None: no labels).
FilePair = tuple[str, str, bool | None]


@dataclass(frozen=True)
class Row:
    """One check: its name, the figure `found`, the `official` figure, and whether `found` is ok.

    `official` is None for images other than Tiny ImageNet. `ok` is None if the figure is only
    reported.
    """

    check: str
    found: int | str
    official: int | str | None
    ok: bool | None


@dataclass(frozen=True)
class Report:
    """The result of `verify`.

    `scope`: for Tiny ImageNet `complete`, `part` (no more classes and images than the official
    archive) or `other`; for other images `any`. `faults`: a line for each image that cannot be
    decoded; after 20 lines, the number of the rest. `other_modes`: the number of images in each
    mode other than RGB and L, as text. `duplicates`: pairs of file names with the same bytes, and
    whether their labels differ (None: no labels).

    With scope `any`, `duplicates` are those that are not ok, at most 100,000; `near_duplicates`
    likewise; `pair_lines`: lines about them, as in `faults`.
    """

    scope: str
    rows: tuple[Row, ...]
    faults: tuple[str, ...]
    other_modes: str
    duplicates: tuple[FilePair, ...]
    near_duplicates: tuple[FilePair, ...] = ()
    pair_lines: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no check failed; the duplicates of the official archive are allowed."""
        return all(row.ok is not False for row in self.rows)


def first_lines(lines: Sequence[str], rest: str, total: int | None = None) -> tuple[str, ...]:
    """Return the first 20 lines, and one with the number of the others.

    `rest`: the end of that line. `total`: the number of all, if `lines` are only the first ones.
    """
    count = (len(lines) if total is None else total) - _MAX_LINES
    return (*lines[:_MAX_LINES], *([f"and {count:,} more {rest}"] if count > 0 else []))
