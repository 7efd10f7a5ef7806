"""A run at other test sizes than its own, over several at once, and beside other runs, in pairs.

    python -m benchmarks.upscaled runs/a --beside runs/b --sizes 64 80 96 --data DATA

All in float32, plain and with mirror images, on the hold-out and on val; what the runs have kept is
not computed again. `chosen`: the size that is best on the hold-out; val chose nothing.
"""

from dataclasses import replace
from typing import Any

import torch

from benchmarks.machine import facts
from tinynet import console
from tinynet.compute import Compute
from tinynet.data.download import find_data
from tinynet.data.packed import open_packed
from tinynet.evaluation.evaluate import ScoreRequest, evaluate
from tinynet.evaluation.predictor import Predictor
from tinynet.files import write_json
from tinynet.flags import Parser, add_common, positive_int, run_command
from tinynet.records import MISSING
from tinynet.runs import finished_stage
from tinynet.score import merges
from tinynet.score.compare import mcnemar
from tinynet.score.metrics import score


def main() -> None:
    """The command."""
    parser = Parser("benchmarks.upscaled", __doc__)
    parser.add_argument("name", metavar="RUN", help="a finished run")
    parser.add_argument(
        "--beside", nargs="*", default=[], metavar="RUN", help="runs to compare it with"
    )
    parser.add_argument(
        "--sizes",
        type=positive_int,
        nargs="+",
        default=[64, 80, 96],
        metavar="N",
        help="test sizes in pixels (default: 64 80 96)",
    )
    add_common(parser, "data", "cache", "out")
    asked = parser.parse_args()
    packed = open_packed(find_data(asked.data), asked.cache)
    compute = Compute(torch.device("cpu"), torch.float32, int8=False)
    ours, *others = (
        Predictor(finished_stage(name, None), packed, compute)
        for name in (asked.name, *asked.beside)
    )
    sizes = list(dict.fromkeys([ours.size, *asked.sizes]))
    # What it costs is in sizes.json: here other work may have run beside.
    rows = [
        {
            **replace(row, images_per_second=MISSING).to_json(),
            "run": ours.folder.run.name,
        }
        for row in evaluate(ours, ScoreRequest(sizes=sizes, tta=["flip"]))
    ]
    plain = {
        row["size"]: row["top1"]
        for row in rows
        if (row["split"], row["views"]) == ("holdout", "none")
    }
    chosen = max(plain, key=plain.__getitem__)
    together, pairs = [], []
    for split in ("holdout", "val"):
        together.append(_together(ours, split, sizes))
        pairs += _pairs(ours, others, split, chosen, sizes)
    out = asked.out or "benchmarks/results/finetune-sizes.json"
    stored = ours.folder.read_recipe()
    write_json(
        out,
        {
            "what": f"{ours.folder.stage}, trained at {ours.size} px, at other test sizes as it is",
            "machine": facts(compute),
            **{key: stored[key] for key in ("data_digest", "split_digest")},
            "settings": stored["recipe"][ours.folder.stage],
            "rows": rows,
            "chosen": chosen,
            "together": together,
            "in pairs (McNemar)": pairs,
        },
    )
    for pair in pairs:
        console.log(f"{pair['split']:8}{pair['what']}: {pair['gain']:+.2%}, p = {pair['p']:.2g}")
    print(out)


def _merged(predictor: Predictor, split: str, views: str, sizes: list[int]) -> tuple[Any, Any]:
    """Log-probabilities of one set of views over one or more sizes, and the labels."""
    found = [predictor.predict(split, *predictor.sets([views], size)) for size in sizes]
    each = [one.merged(merges.mean) for one in found]
    return merges.mean(torch.stack([torch.from_numpy(one) for one in each])).numpy(), found[
        0
    ].labels


def _together(predictor: Predictor, split: str, sizes: list[int]) -> dict[str, Any]:
    merged, labels = _merged(predictor, split, "flip", sizes)
    return {
        "split": split,
        "views": "flip",
        "merge": "mean",
        "sizes": sizes,
        **score(merged, labels),
    }


def _pairs(
    ours: Predictor, others: list[Predictor], split: str, chosen: int, sizes: list[int]
) -> list[dict[str, Any]]:
    """What is asked of a split: what the run brings over the others, and what sizes and mirror
    images bring.
    """

    def right(predictor: Predictor, views: str, *sizes: int) -> Any:
        merged, labels = _merged(predictor, split, views, list(sizes))
        return merged.argmax(1) == labels

    own, name = ours.size, ours.folder.stage
    asked = [
        (
            f"{name} at {own} px over {other.folder.stage} of {other.folder.run.name} at "
            f"{other.size} px{also}",
            right(ours, views, own),
            right(other, views, other.size),
        )
        for other in others
        for views, also in (("none", ""), ("flip", ", mirrored"))
    ]
    if chosen != own:
        asked += [
            (
                f"{chosen} px over {own} px{also}",
                right(ours, views, chosen),
                right(ours, views, own),
            )
            for views, also in (("none", ""), ("flip", ", mirrored"))
        ]
    asked += [
        (
            f"all of {', '.join(map(str, sizes))} px over {chosen} px, mirrored",
            right(ours, "flip", *sizes),
            right(ours, "flip", chosen),
        )
    ]
    return [
        {"split": split, "what": what, **mcnemar(first, second)} for what, first, second in asked
    ]


if __name__ == "__main__":
    run_command(main)
