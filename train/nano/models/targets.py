"""What embeddings are drawn to: linear readings of what they stand for, and sums of one vector for each part of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextgpt.train.nano.world.sampling import IGNORED

SMOOTHING = 0.05  # of the labels
TARGETS_WEIGHT = 5.0  # of `away_from`, beside losses of a few nats


class Probes(nn.Module):
    """Linear readings of an embedding.

    Args:
        sizes: part of what it shows → how many values that has.
        embed_dim: of the embedding.
        scale: what embeddings are multiplied by first; those of length 1 by the root of their width.
    """

    def __init__(self, sizes: dict[str, int], embed_dim: int, scale: float = 1.0):
        super().__init__()
        self.heads = nn.ModuleDict({part: nn.Linear(embed_dim, size) for part, size in sizes.items()})
        self.scale = scale

    def forward(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Logits for each part, from embeddings `[N, D]`."""
        return {part: head(embeddings * self.scale) for part, head in self.heads.items()}

    def losses(self, embeddings: Tensor, targets: Tensor, noise: float = 0.0) -> dict[str, Tensor]:
        """Cross-entropy of each part, from embeddings `[N, D]` and values `[N, parts]`, `IGNORED` where there is none.

        Args:
            noise: on the embeddings, at most, in units of their own deviation.
        """
        if noise:
            amount = noise * torch.rand(len(embeddings), 1, device=embeddings.device) * embeddings.detach().std()
            embeddings = embeddings + amount * torch.randn_like(embeddings)
        return {
            part: F.cross_entropy(logits, target, ignore_index=IGNORED, label_smoothing=SMOOTHING)
            for (part, logits), target in zip(self(embeddings).items(), targets.T, strict=True)
        }


class AdditiveTargets(nn.Module):
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


class OrthogonalTargets(AdditiveTargets):
    """The same with vectors that are given: orthonormal, so that none hides another. What is not said adds 0.

    Vectors that are learned crowd into a few directions, and a projection has to stretch the rest, noise and all.

    Args:
        sizes, embed_dim: as for `AdditiveTargets`.
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
