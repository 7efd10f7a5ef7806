"""Draw the learning curves of a stage when it is finished."""

from tinynet.console import log
from tinynet.plotting import save_figure
from tinynet.report.figures import training_curves
from tinynet.runs import StageFolder
from tinynet.training.observers import Observer


class Curves(Observer):
    """Writes `curves.png` into the folder of each stage."""

    def finish(self, folder: StageFolder, title: str) -> None:
        """Draw loss, accuracy and learning rate from the stage's log."""
        save_figure(training_curves(folder.read_log(), title), folder.curves)
        log(f"learning curves: {folder.curves}")
