"""Measure accuracy and speed of int8 in the frozen backbone, compared with floats.

    python -m benchmarks.int8 --runs runs/a runs/b --data data/tiny-imagenet-200.zip

Floats are float32 and, if the processor supports it, bfloat16. Speed: the backbone alone on one
batch, interleaved. Accuracy: the head of each run, on features of the held-out images in each
precision, compared in pairs (McNemar's test).
"""

from benchmarks.machine import facts
from benchmarks.measure import in_turn
from benchmarks.ours import BATCH, frozen_forward
from tinynet import console
from tinynet.compute import choose_compute
from tinynet.data.copies import open_packed
from tinynet.data.download import find_data
from tinynet.evaluation.predictor import Predictor
from tinynet.files import write_json
from tinynet.flags import Parser, add_common, run_command, user_path
from tinynet.models.checkpoint import load_model
from tinynet.runs import finished_stage
from tinynet.score.compare import mcnemar
from tinynet.score.metrics import score


def main() -> None:
    """Run the command."""
    parser = Parser("benchmarks.int8", __doc__)
    parser.add_argument(
        "--runs", nargs="+", required=True, metavar="RUN", help="runs with a finished base"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=640,
        metavar="N",
        help="images per measurement (default: 640)",
    )
    parser.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="number of turns (default: 5)"
    )
    add_common(parser, "data", "cache")
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="FILE",
        help="file for the result (default: benchmarks/results/int8.json)",
    )
    options = parser.parse_args()
    packed = open_packed(find_data(options.data), options.cache)
    floats = dict.fromkeys(("float32", choose_compute("cpu", int8=False).precision))
    kinds = {name: choose_compute("cpu", name) for name in (*floats, "int8")}
    rows = []
    for run in options.runs:
        folder, scores, hits = finished_stage(run, "base"), {}, {}
        for name, device in kinds.items():
            predictor = Predictor(folder, packed, device)
            probabilities = predictor.predict("holdout", *predictor.sets(["none"], predictor.size))
            scores[name] = score(probabilities.log_probabilities[0], probabilities.labels).to_json()
            hits[name] = probabilities.log_probabilities[0].argmax(1) == probabilities.labels
        rows.append(
            {
                "run": folder.run.name,
                "trained on": folder.read_recipe()["device"]["precision"],
                **scores,
                **{
                    f"int8 over {name}": mcnemar(hits["int8"], hits[name]).to_json()
                    for name in floats
                },
            }
        )
        console.log(
            f"{folder.run.name}: "
            + ", ".join(f"{name} {values['top1']:.2%}" for name, values in scores.items())
        )
    count = -(-options.images // BATCH) * BATCH
    model, _ = load_model(finished_stage(options.runs[0], "base").best, packed.wnids)
    rates = in_turn(
        {name: frozen_forward(model, packed, 64, device, count) for name, device in kinds.items()},
        count,
        kinds["float32"],
        options.repeats,
    )
    path = options.out or "benchmarks/results/int8.json"
    write_json(
        path,
        {
            "what": "frozen VGG16 at 64 px, batch 64: images/s, interleaved, and hold-out top-1 of "
            "base",
            "machine": facts(kinds["int8"]),
            "rates": rates,
            "accuracy": rows,
        },
    )
    print(path)


if __name__ == "__main__":
    run_command(main)
