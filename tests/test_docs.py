"""README and docs: their links have targets, and their commands and recipes' fields exist."""

import re
import shlex

import pytest

from helpers.paths import CHECKOUT
from ssamba_upstream.cli import _parser
from ssamba_upstream.finetuning.recipe import FinetuningRecipe
from ssamba_upstream.pretraining.recipe import PretrainingRecipe
from ssamba_upstream.training.recipe import read_recipe

PAGES = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
RECIPES = {"pretrain": PretrainingRecipe, "finetune": FinetuningRecipe}


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def anchors(text):
    """Return GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text):
    """Yield the arguments of every complete ``ssamba`` command in a page's shell blocks."""
    for block in blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|;()<>&")
            lexer.whitespace_split = True
            command = []
            for word in [*lexer, ";"]:
                if set(word) <= set("|;()<>&"):
                    if command[:1] == ["ssamba"] and "..." not in command:
                        yield command[1:]
                    command = []
                else:
                    command.append(word)


COMMANDS = [pytest.param(command, id=f"{name} {' '.join(command)[:60]}")
            for name, text in TEXTS.items() for command in commands(text)]


@pytest.mark.parametrize("page", PAGES, ids=TEXTS)
def test_links_have_targets(page):
    for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]+))?\)", TEXTS[page.name]):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), f"{target}#{anchor}"


@pytest.mark.parametrize("name", TEXTS)
def test_python_examples_compile(name):
    for block in blocks(TEXTS[name], "python"):
        compile(block, name, "exec")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    options = _parser().parse_args(command)
    if command[0] in RECIPES:
        overrides = [re.sub(r"^checkpoint=.*", "checkpoint=ssamba_starter", each) for each in options.overrides]
        read_recipe(options.recipe, RECIPES[command[0]], overrides)


def test_the_commands_are_found():
    assert len(COMMANDS) > 60 and {"superb", "listen", "extract"} <= {command.values[0][0] for command in COMMANDS}
