"""Export a run with its model card."""

from pathlib import Path

import jinja2

from tinynet.data.packed import Packed
from tinynet.evaluation.export import Export, export
from tinynet.files import write_text
from tinynet.models.export import About
from tinynet.records import MISSING
from tinynet.report.collect import run_facts
from tinynet.runs import StageFolder
from tinynet.training.config import RunConfig


def export_with_card(folder: StageFolder, path: Path, packed: Packed, images: int) -> Export:
    """Write the network of a finished stage to `path`, and its model card beside it.

    `images`: how many images of val the file is checked on. The card is Markdown, in FILE.md.
    Raises `InputError` if the file cannot be written or computes something else.
    """
    result, about = export(folder, path, packed, images)
    write_text(path.with_name(f"{path.name}.md"), _card(result, about, folder))
    return result


def _card(result: Export, about: About, folder: StageFolder) -> str:
    """The model card in Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701  Markdown, not HTML
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    config = RunConfig.of(folder)
    # At other sizes, and with other merges, the file computes something else.
    rows = [
        row
        for row in folder.read_scores()
        if row.merge == "mean" and row.size == about.image_size and row.correction is MISSING
    ]
    facts = [fact for fact in run_facts(folder, config) if fact[0] != "command"]  # has places
    return environment.get_template("card.md.j2").render(
        about=about,
        export=result,
        name=Path(result.file).name,
        title=f"{about.arch} on {len(about.class_ids)} classes",
        recipe=config.recipe.name,
        stage=folder.stage,
        rows=rows,
        facts=facts,
        data=Path(config.data).name,
        weights=Path(config.weights).name,
        weights_alone=Path(result.file).suffix == ".safetensors",
    )
