"""Figures: matplotlib without a display, and complete figure files. matplotlib is imported only for drawing."""

from pathlib import Path

from .files import replacing


def load_pyplot():
    """Return matplotlib's pyplot, set up to draw into files only."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure, path):
    """Write a figure in the format of the file's extension, through a temporary file, and close it."""
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, format=Path(path).suffix[1:])
    finally:
        load_pyplot().close(figure)
