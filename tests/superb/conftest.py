import pytest

from ssamba_upstream.corpora.synthetic.corpora import synthesise_corpora


@pytest.fixture(scope="session")
def corpora(tmp_path_factory):
    """Small synthetic corpora of all tasks; tests that change one copy it first."""
    out = tmp_path_factory.mktemp("synthetic") / "corpora"
    synthesise_corpora(out)
    return out
