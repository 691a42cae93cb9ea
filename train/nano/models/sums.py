"""Embeddings that add up: a loss that draws them to the sum of one vector for each thing they stand for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextgpt.train.nano.world.sampling import IGNORED

SUM_WEIGHT = 5.0  # of `away_from`, beside losses of a few nats


class Sums(nn.Module):
    """Embeddings as they should be: along the sum of one vector for each thing that can be said of what is shown.

    So combinations that were never seen lie where a linear projection expects them.

    Args:
        sizes: part of what it shows → how many values that has.
        embed_dim: of the embedding.
    """

    def __init__(self, sizes: dict[str, int], embed_dim: int):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size + 1, embed_dim) for size in sizes.values())  # the last: not said
        for table in self.tables:
            nn.init.normal_(table.weight, std=embed_dim**-0.5)

    def forward(self, targets: Tensor) -> Tensor:
        """Vectors `[N, D]` for values `[N, parts]`, `IGNORED` where there is none."""
        values = targets.T
        return sum(
            table(value.where(value != IGNORED, table.num_embeddings - 1))
            for table, value in zip(self.tables, values, strict=True)
        )


class Codes(Sums):
    """`Sums` of vectors that are given: orthonormal, so that no thing's vector hides another's. What is not said adds 0.

    Vectors that are learned crowd into a few directions, and a projection has to stretch the rest, noise and all.

    Args:
        sizes, embed_dim: as for `Sums`.
        first: how many of the vectors other codes have taken.

    Raises:
        ValueError: there are not so many orthogonal vectors.
    """

    def __init__(self, sizes: dict[str, int], embed_dim: int, first: int = 0):
        super().__init__(sizes, embed_dim)
        last = first + sum(sizes.values())
        if last > embed_dim:
            raise ValueError(f"{last} codes of {embed_dim} numbers: make the embeddings wider.")
        random = torch.randn(embed_dim, embed_dim, generator=torch.Generator().manual_seed(0))
        codes = torch.linalg.qr(random).Q[first:last].split(list(sizes.values()))
        for table, own in zip(self.tables, codes, strict=True):
            table.weight.data = torch.cat([own, torch.zeros(1, embed_dim)])
        self.requires_grad_(False)


def away_from(vectors: Tensor, embeddings: Tensor) -> Tensor:
    """How far embeddings point elsewhere than they should, 0..2; both `[N, D]`."""
    return (1 - F.cosine_similarity(embeddings.float(), vectors.float())).mean()
