"""Pages, figures and tables of the results of a run."""
