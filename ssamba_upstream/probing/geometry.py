"""The geometry of the layers: norms and effective rank of their time averages, and linear CKA of two layers."""

import math

import torch

# More do not make an estimate of similarity steadier, which is free of bias for any number.
MOST_UTTERANCES = 1000


@torch.no_grad()
def norms(features):
    """Mean Euclidean norm of each layer's time averages: (layers, utterances, features) -> (layers,)."""
    return torch.stack([torch.linalg.vector_norm(layer, dim=1, dtype=torch.float64).mean() for layer in features])


@torch.no_grad()
def effective_rank(features):
    """How many directions a set of representations uses: 1 where all are equal, at most as many as there are.

    The exponential of the entropy of the singular values, each over their sum (Roy and Vetterli, "The effective rank",
    2007; RankMe, arXiv 2210.02885). The mean is not subtracted: that of a network that has collapsed, which makes the
    same of everything, would leave nothing but rounding.

    Args:
        features: (utterances, features).

    Returns:
        a float; NaN where a feature is not finite.
    """
    if not features.isfinite().all():
        return math.nan
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp().item()


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
    # Similarities are the products of the Gram matrices, each taken as a vector of length 1.
    grams /= grams.norm(dim=1, keepdim=True)
    return grams @ grams.T


def _centred_gram(layer):
    """(utterances, features) -> (utterances, utterances): inner products of the utterances, their diagonal left out and
    their rows and columns centred as the unbiased estimate (Song et al., 2012) has it."""
    layer = layer - layer.mean(dim=0)
    count = len(layer)
    gram = (layer @ layer.T).fill_diagonal_(0)
    sums = gram.sum(dim=0) / (count - 2)
    centred = gram - sums - sums[:, None] + sums.sum() / (count - 1)
    return centred.fill_diagonal_(0)
