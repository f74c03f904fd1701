"""``ssamba bench``: the cost of the scan, the whole network and its pretraining, and the paper's efficiency study.

Machines are noisy, so no number here is a single measurement: in every round, all candidates of a row run one after the
other in one process, and the median over the rounds is reported. Compare only within a row.
"""
