"""All cases by kind: designed ones, and random damage for the rest."""

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


_DAMAGE = 6  # one case in six is random damage


def corpus(count: int, seed: int, only: str | None = None) -> list[Case]:
    """Return `count` cases of all kinds, or of the kind `only`, or the one case with this title.

    Each kind gets its share of designed cases; if there is no room for all of them, the seed draws
    a sample. The rest is random damage.
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
    """The case with this title; the title of random damage contains its number."""
    kind = next(kind for kind in KINDS if title.split("/")[0] == kind.KIND)
    numbers = re.findall(r"-(\d{4})(?!\d)", title)
    cases = (*kind.designed(), *(kind.random(int(number)) for number in numbers))
    for case in cases:
        if case.title == title:
            return case
    raise InputError(f"--only {title}: no such case")
