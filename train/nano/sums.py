"""Embeddings that add up: a loss that draws them to the sum of one vector for each thing they stand for."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from nextgpt.train.nano.loop import IGNORED

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


def away_from(vectors: Tensor, embeddings: Tensor) -> Tensor:
    """How far embeddings point elsewhere than they should, 0..2; both `[N, D]`."""
    return (1 - F.cosine_similarity(embeddings.float(), vectors.float())).mean()
