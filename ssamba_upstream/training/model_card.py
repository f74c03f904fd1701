"""Parts shared by the model cards of pretraining and fine-tuning: the hub's header and the recipe."""

import yaml
from huggingface_hub import ModelCardData


def card_header(recipe, **fields):
    """Return a model card's header for the Hugging Face hub.

    Args:
        recipe: recipe as a dict; its ``license`` applies to the weights.
        fields: other fields of huggingface_hub's ModelCardData.
    """
    data = ModelCardData(library_name="transformers", license=recipe["license"], **fields)
    return f"---\n{data.to_yaml()}\n---"


def card_recipe(recipe, *paths):
    """Return a recipe, given as a dict, as Markdown, without the fields that name files on the run's machine."""
    shown = {name: value for name, value in recipe.items() if name not in paths}
    return f"## Recipe\n\n```yaml\n{yaml.safe_dump(shown, sort_keys=False)}```"
