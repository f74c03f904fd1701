"""``ssamba s3prl``: s3prl's newer recipes with our entries."""

import sys

import pytest

from ssamba_upstream import cli
from ssamba_upstream.plugin import runner


def test_hands_its_arguments_over_with_the_entries_registered(monkeypatch):
    received = []

    def hand_over(arguments, run):
        received.append(arguments)

    monkeypatch.setattr(runner, "_hand_over", hand_over)
    cli.main(["s3prl", "SuperbSID", "--build_upstream.name", "ssamba_tiny"])
    assert received == [["SuperbSID", "--build_upstream.name", "ssamba_tiny"]]


def test_a_recipe_whose_package_is_missing_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3prl.problem", None)
    with pytest.raises(SystemExit, match="superb-all"):
        runner.run_s3prl_main(["SuperbSID"])
