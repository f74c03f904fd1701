"""A synthetic corpus for each of SUPERB's tasks, made once."""

import pytest

from ssamba_upstream.corpora.synthetic.corpora import synthesise_corpora


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    out = tmp_path_factory.mktemp("synthetic") / "corpora"
    synthesise_corpora(out)
    return out
