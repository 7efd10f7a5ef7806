"""What 8-bit integers cost and bring in the frozen backbone, beside floats.

    python -m benchmarks.int8 --runs runs/a runs/b --data data/tiny-imagenet-200.zip

Floats are float32 and, where the processor has it, bfloat16. Speed: the bare backbone on one batch,
in turn. Accuracy: each run's head, trained on whatever features it was, on the same held-out
pictures with features of each kind, compared in pairs (McNemar).
"""

from benchmarks.machine import facts
from benchmarks.measure import in_turn
from benchmarks.ours import BATCH, frozen_forward
from tinynet import console
from tinynet.compute import choose_compute
from tinynet.data.download import find_data
from tinynet.data.packed import open_packed
from tinynet.evaluation.evaluate import paired
from tinynet.evaluation.predictor import Predictor
from tinynet.files import write_json
from tinynet.flags import Parser, add_common, run_command
from tinynet.models.checkpoint import load_model
from tinynet.runs import finished_stage
from tinynet.score.metrics import score


def main() -> None:
    """The command."""
    parser = Parser("benchmarks.int8", __doc__)
    parser.add_argument(
        "--runs", nargs="+", required=True, metavar="RUN", help="runs with a finished base"
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=640,
        metavar="N",
        help="pictures a measurement (default: 640)",
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="turns (default: 5)")
    add_common(parser, "data", "cache", "out")
    asked = parser.parse_args()
    packed = open_packed(find_data(asked.data), asked.cache)
    floats = dict.fromkeys(("float32", choose_compute("cpu", int8=False).precision))
    kinds = {name: choose_compute("cpu", name) for name in (*floats, "int8")}
    rows = []
    for run in asked.runs:
        folder, scores, right = finished_stage(run, "base"), {}, {}
        for name, device in kinds.items():
            predictor = Predictor(folder, packed, device)
            probabilities = predictor.predict("holdout", *predictor.sets(["none"], predictor.size))
            scores[name] = score(probabilities.log_probabilities[0], probabilities.labels)
            right[name] = probabilities.log_probabilities[0].argmax(1) == probabilities.labels
        rows.append(
            {
                "run": folder.run.name,
                "trained on": folder.read_recipe()["device"]["precision"],
                **scores,
                **{
                    f"int8 over {name}": paired(right["int8"], right[name]).to_json()
                    for name in floats
                },
            }
        )
        console.log(
            f"{folder.run.name}: "
            + ", ".join(f"{name} {found['top1']:.2%}" for name, found in scores.items())
        )
    count = -(-asked.images // BATCH) * BATCH
    model, _ = load_model(finished_stage(asked.runs[0], "base").best, packed.wnids)
    rates = in_turn(
        {name: frozen_forward(model, packed, 64, device, count) for name, device in kinds.items()},
        count,
        kinds["float32"],
        asked.repeats,
    )
    out = asked.out or "benchmarks/results/int8.json"
    write_json(
        out,
        {
            "what": "frozen VGG16 at 64 px, batch 64: pictures/s in turn, and hold-out top-1 of "
            "base",
            "machine": facts(kinds["int8"]),
            "rates": rates,
            "accuracy": rows,
        },
    )
    print(out)


if __name__ == "__main__":
    run_command(main)
