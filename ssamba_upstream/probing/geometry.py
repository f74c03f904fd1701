"""Geometry of the layers: norms and effective rank of their time averages, and linear CKA between layers."""

import math

import torch

# The estimate of similarity is unbiased for any number of utterances; more would not make it steadier.
MOST_UTTERANCES = 1000


@torch.no_grad()
def norms(features):
    """Return the mean Euclidean norm of each layer's time averages: (layers, utterances, features) -> (layers,)."""
    return torch.stack([torch.linalg.vector_norm(layer, dim=1, dtype=torch.float64).mean() for layer in features])


@torch.no_grad()
def effective_rank(features):
    """Return the number of directions that representations use: 1 if all are equal, at most their number.

    This is the exponential of the entropy of the singular values, normalised to sum to one (Roy and Vetterli, "The
    effective rank", 2007; RankMe, arXiv 2210.02885). The mean is not subtracted: a collapsed network gives every
    utterance the same representation, and subtracting it would leave only rounding errors.

    Args:
        features: (utterances, features).

    Returns:
        a float; NaN if a feature is not finite.
    """
    if not features.isfinite().all():
        return math.nan
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp().item()


@torch.no_grad()
def linear_cka(features, seed=0):
    """Return the linear centred kernel alignment between layers, from an unbiased estimate of the dependence.

    It is 1 for layers that are equal up to rotation and scale, and about 0 for independent ones, even with far fewer
    utterances than features. Source: Kornblith et al., "Similarity of Neural Network Representations Revisited"
    (2019), with the estimator of Song et al. (2012) as in Nguyen et al. (2021).

    Args:
        features: (layers, utterances, features), four or more utterances; at most 1000, drawn at random, are used.
        seed: seed of the draw.

    Returns:
        (layers, layers), NaN for constant layers.
    """
    drawn = torch.randperm(features.shape[1], generator=torch.Generator().manual_seed(seed))[:MOST_UTTERANCES]
    if len(drawn) < 4:
        raise ValueError(f"the similarity of layers needs four or more utterances; got {len(drawn)}")
    grams = torch.stack([_centred_gram(layer[drawn].float()).flatten() for layer in features])
    # Similarities are inner products of the Gram matrices, each flattened and normalised to unit length.
    grams /= grams.norm(dim=1, keepdim=True)
    return grams @ grams.T


def _centred_gram(layer):
    """Return the utterances' inner products, (utterances, utterances), with a zero diagonal and rows and columns
    centred as in the unbiased estimate (Song et al., 2012)."""
    layer = layer - layer.mean(dim=0)
    count = len(layer)
    gram = (layer @ layer.T).fill_diagonal_(0)
    sums = gram.sum(dim=0) / (count - 2)
    centred = gram - sums - sums[:, None] + sums.sum() / (count - 1)
    return centred.fill_diagonal_(0)
