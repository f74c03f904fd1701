"""``ssamba bench``: what the scan, the whole network and its pretraining cost, and the paper's efficiency study.

Machines are noisy, so nothing here is a single time: all candidates of a row run one after the other in every round, in
one process, and what is reported is the median over the rounds. Compare within a row.
"""
