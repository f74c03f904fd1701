"""What the model cards of pretraining and fine-tuning have in common: the hub's header, and the recipe."""

import yaml
from huggingface_hub import ModelCardData


def card_header(recipe, **fields):
    """The header of a model card, as the Hugging Face hub reads it.

    Args:
        recipe: a recipe as a dict, whose ``license`` is the weights'.
        fields: of huggingface_hub's ModelCardData.
    """
    data = ModelCardData(library_name="transformers", license=recipe["license"], **fields)
    return f"---\n{data.to_yaml()}\n---"


def card_recipe(recipe, *paths):
    """A recipe as a dict -> Markdown, without the fields that name files of the machine that the run was on."""
    shown = {name: value for name, value in recipe.items() if name not in paths}
    return f"## Recipe\n\n```yaml\n{yaml.safe_dump(shown, sort_keys=False)}```"
