"""How long the layers' averages are, and how alike the layers: linear CKA."""

import torch

# Of which a similarity is estimated; the estimate is free of bias, and steady long before.
MOST_UTTERANCES = 1000


@torch.no_grad()
def norms(features):
    """Mean Euclidean norm of each layer's time averages: (layers,) of (layers, utterances, features)."""
    return torch.stack([layer.float().norm(dim=1).mean() for layer in features])


@torch.no_grad()
def linear_cka(features, seed=0):
    """Linear centred kernel alignment between layers, by the unbiased estimate of the dependence.

    1 for layers that are the same up to rotation and scale; about 0 for independent ones, however few the
    utterances are beside the features. Source: Kornblith et al., "Similarity of Neural Network
    Representations Revisited" (2019), with the estimator of Song et al. (2012) as in Nguyen et al. (2021).

    Args:
        features: (layers, utterances, features), of four or more utterances; of more than 1000, 1000 are drawn.
        seed: of the draw.

    Returns:
        (layers, layers), NaN where a layer is constant.
    """
    drawn = torch.randperm(features.shape[1], generator=torch.Generator().manual_seed(seed))[:MOST_UTTERANCES]
    if len(drawn) < 4:
        raise ValueError(f"a similarity of layers needs four or more utterances; got {len(drawn)}")
    grams = torch.stack([_centred_gram(layer[drawn].float()).flatten() for layer in features])
    # Directions, whose products are the similarities.
    grams /= grams.norm(dim=1, keepdim=True)
    return grams @ grams.T


def _centred_gram(layer):
    """(utterances, utterances): products of the features, centred as the unbiased estimate wants it."""
    layer = layer - layer.mean(dim=0)
    count = len(layer)
    gram = (layer @ layer.T).fill_diagonal_(0)
    sums = gram.sum(dim=0) / (count - 2)
    centred = gram - sums - sums[:, None] + sums.sum() / (count - 1)
    return centred.fill_diagonal_(0)
