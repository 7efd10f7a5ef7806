"""Evaluate a run at other test sizes, and over several sizes at once; compare with other runs.

    python -m benchmarks.upscaled runs/a --beside runs/b --sizes 64 80 96 --data DATA

In float32, with one view and with horizontal flips, on the hold-out and on val. Comparisons are
paired (McNemar's test). Stored probabilities of the runs are used. In the result, `chosen` is the
size with the best accuracy on the hold-out.
"""

from dataclasses import replace
from typing import Any

import torch

from benchmarks.machine import facts
from tinynet import console
from tinynet.compute import Compute
from tinynet.data.copies import open_packed
from tinynet.data.download import find_data
from tinynet.evaluation.evaluate import ScoreRequest, evaluate
from tinynet.evaluation.predictor import Predictor
from tinynet.files import write_json
from tinynet.flags import Parser, add_common, positive_int, run_command, user_path
from tinynet.records import MISSING
from tinynet.runs import finished_stage
from tinynet.score import merges
from tinynet.score.compare import mcnemar
from tinynet.score.metrics import score


def main() -> None:
    """Run the command."""
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
    add_common(parser, "data", "cache")
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="FILE",
        help="file for the result (default: benchmarks/results/finetune-sizes.json)",
    )
    options = parser.parse_args()
    packed = open_packed(find_data(options.data), options.cache)
    compute = Compute(torch.device("cpu"), torch.float32, int8=False)
    ours, *others = (
        Predictor(finished_stage(name, None), packed, compute)
        for name in (options.name, *options.beside)
    )
    sizes = list(dict.fromkeys([ours.size, *options.sizes]))
    # No rates: other work may have run at the same time. The cost is in sizes.json.
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
    best_size = max(plain, key=plain.__getitem__)
    together, pairs = [], []
    for split in ("holdout", "val"):
        together.append(_together(ours, split, sizes))
        pairs += _pairs(ours, others, split, best_size, sizes)
    path = options.out or "benchmarks/results/finetune-sizes.json"
    recipe = ours.folder.read_recipe()
    write_json(
        path,
        {
            "what": f"{ours.folder.stage}, trained at {ours.size} px, at other test sizes, without "
            "correction",
            "machine": facts(compute),
            **{key: recipe[key] for key in ("data_digest", "split_digest")},
            "settings": recipe["recipe"][ours.folder.stage],
            "rows": rows,
            "chosen": best_size,
            "together": together,
            "in pairs (McNemar)": pairs,
        },
    )
    for pair in pairs:
        console.log(f"{pair['split']:8}{pair['what']}: {pair['gain']:+.2%}, p = {pair['p']:.2g}")
    print(path)


def _merged(predictor: Predictor, split: str, views: str, sizes: list[int]) -> tuple[Any, Any]:
    """Log-probabilities of one set of views over one or more sizes, and the labels."""
    all_sizes = [predictor.predict(split, *predictor.sets([views], size)) for size in sizes]
    merged = [torch.from_numpy(one.merged(merges.mean)) for one in all_sizes]
    return merges.mean(torch.stack(merged)).numpy(), all_sizes[0].labels


def _together(predictor: Predictor, split: str, sizes: list[int]) -> dict[str, Any]:
    merged, labels = _merged(predictor, split, "flip", sizes)
    return {
        "split": split,
        "views": "flip",
        "merge": "mean",
        "sizes": sizes,
        **score(merged, labels).to_json(),
    }


def _pairs(
    ours: Predictor, others: list[Predictor], split: str, best_size: int, sizes: list[int]
) -> list[dict[str, Any]]:
    """Paired comparisons on a split: with the other runs, between sizes, and over all sizes."""

    def hits(predictor: Predictor, views: str, *sizes: int) -> Any:
        merged, labels = _merged(predictor, split, views, list(sizes))
        return merged.argmax(1) == labels

    own, name = ours.size, ours.folder.stage
    comparisons = [
        (
            f"{name} at {own} px over {other.folder.stage} of {other.folder.run.name} at "
            f"{other.size} px{also}",
            hits(ours, views, own),
            hits(other, views, other.size),
        )
        for other in others
        for views, also in (("none", ""), ("flip", ", with flips"))
    ]
    if best_size != own:
        comparisons += [
            (
                f"{best_size} px over {own} px{also}",
                hits(ours, views, best_size),
                hits(ours, views, own),
            )
            for views, also in (("none", ""), ("flip", ", with flips"))
        ]
    comparisons += [
        (
            f"all of {', '.join(map(str, sizes))} px over {best_size} px, with flips",
            hits(ours, "flip", *sizes),
            hits(ours, "flip", best_size),
        )
    ]
    rows = []
    for what, first, second in comparisons:
        pair = mcnemar(first, second)
        counts = {"wins": pair.wins, "losses": pair.losses}
        rows.append({"split": split, "what": what, **counts, **pair.to_json()})
    return rows


if __name__ == "__main__":
    run_command(main)
