"""Pictures: matplotlib without a display, and figures written whole. matplotlib is imported when one is drawn."""

from pathlib import Path

from .files import replacing


def load_pyplot():
    """matplotlib's pyplot, drawing into files only."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure, path):
    """Write a figure in the format of the file's ending, by way of a temporary name, and close it."""
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, format=Path(path).suffix[1:])
    finally:
        load_pyplot().close(figure)
