"""Grouping of items of unequal size under a limit."""


def pack(sizes, limit, order=None):
    """Yield lists of consecutive indices whose total size does not exceed a limit, or of a single larger item.

    Args:
        sizes: sizes of the items.
        limit: largest total size of a list.
        order: indices in the order in which they are grouped. Default: that of ``sizes``.
    """
    run, total = [], 0
    for i in range(len(sizes)) if order is None else order:
        if run and total + sizes[i] > limit:
            yield run
            run, total = [], 0
        run.append(i)
        total += sizes[i]
    if run:
        yield run
