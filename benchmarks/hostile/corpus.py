"""All cases, by kind: those of one idea each, and damage by chance to fill up."""

import re
from itertools import islice
from random import Random
from types import ModuleType

from benchmarks.hostile import (
    caches,
    checkpoints,
    folders,
    images,
    labels,
    records,
    stored,
    texts,
    weights,
    zips,
)
from benchmarks.hostile.case import Case
from tinynet.errors import InputError

KINDS: tuple[ModuleType, ...] = (
    zips,
    texts,
    folders,
    images,
    labels,
    weights,
    checkpoints,
    records,
    stored,
    caches,
)
NAMES = tuple(kind.KIND for kind in KINDS)


_DAMAGE = 6  # one case in so many is damage by chance


def corpus(count: int, seed: int, only: str | None = None) -> list[Case]:
    """`count` cases over all kinds, or over `only` one, which may be the title of one case too.

    Of each kind come as many ideas as it has its share of all, drawn by the seed where there is no
    room for all of them, and damage by chance for the rest.
    """
    if only and "/" in only:
        return [_called(only)]
    kinds = [kind for kind in KINDS if only in (None, kind.KIND)]
    ideas = {kind.KIND: list(kind.designed()) for kind in kinds}
    total = sum(map(len, ideas.values()))
    room = min(total, count - count // _DAMAGE)
    draw = Random(seed)
    cases, passed = [], 0
    for each in ideas.values():
        before, passed = passed * room // total, passed + len(each)
        sample = set(draw.sample(range(len(each)), passed * room // total - before))
        cases += [case for number, case in enumerate(each) if number in sample]
    damage = (kind.random(number) for number in range(count) for kind in kinds)
    cases += islice(damage, count - room)
    if len({case.title for case in cases}) < len(cases):
        raise ValueError("two cases have one title")
    return sorted(cases, key=lambda case: NAMES.index(case.kind))


def _called(title: str) -> Case:
    """The case of this title; damage by chance has its number in it."""
    kind = next(kind for kind in KINDS if title.split("/")[0] == kind.KIND)
    numbers = re.findall(r"-(\d{4})(?!\d)", title)
    cases = (*kind.designed(), *(kind.random(int(number)) for number in numbers))
    for case in cases:
        if case.title == title:
            return case
    raise InputError(f"--only {title}: no such case")
