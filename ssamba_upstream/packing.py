"""Things of unequal sizes, as many at once as fit."""


def pack(sizes, limit, order=None):
    """Yields lists of indices, as many in a row as together do not exceed a limit; or one that does by itself.

    Args:
        sizes: of the things.
        limit: the largest sum of the sizes in a list.
        order: the indices in the order in which they are taken. Default: that of the sizes.
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
