"""The two trained bridges: encoder embedding → LLM, and LLM signal states → diffusion conditioning.

They know shapes only; which modality or decoder they serve is the model's business.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OutputProjection(nn.Module):
    """Reads one run of signal tokens out into the conditioning of a diffusion model (NExT-GPT, section 3; after GILL).

    `Linear(in → d)` on the sum of the signal tokens' last hidden states and input embeddings, an encoder-decoder
    transformer (pre-norm, no dropout) read out through learned queries, then `Linear(d → width)`. Where the conditioning
    has several tensors, one transformer reads all of them out: each has its own queries and its own last layer. The
    first one's parameter names follow the original checkpoints (`query_embs`, `model`); those of a further one are
    `heads.<name>.query_embs` and `heads.<name>.model`.

    Args:
        in_features: hidden size of the LLM.
        shapes: tensor's name → its shape for one item: `(queries, width)`, or `(width,)` for a single vector.
        hidden_size, num_layers, num_heads: size of the transformer; the feed-forward is 4 × `hidden_size`.
    """

    def __init__(
        self,
        in_features: int,
        shapes: dict[str, tuple[int, ...]],
        hidden_size: int = 512,
        num_layers: int = 4,
        num_heads: int = 4,
    ):
        super().__init__()
        self.shapes = dict(shapes)
        self.first, *further = self.shapes
        self.fc = nn.Linear(in_features, hidden_size)
        layer = {"dim_feedforward": 4 * hidden_size, "dropout": 0.0, "norm_first": True, "batch_first": True}
        self.tfm = nn.Transformer(
            d_model=hidden_size,
            nhead=num_heads,
            num_decoder_layers=num_layers,
            # Built here because pre-norm layers cannot use nested tensors, and torch warns about trying.
            custom_encoder=nn.TransformerEncoder(
                nn.TransformerEncoderLayer(hidden_size, num_heads, **layer),
                num_layers,
                norm=nn.LayerNorm(hidden_size),
                enable_nested_tensor=False,
            ),
            **layer,
        )
        self.model = nn.Linear(hidden_size, self.shapes[self.first][-1])
        self.query_embs = nn.Parameter(torch.randn(1, _queries(self.shapes[self.first]), hidden_size))
        self.heads = nn.ModuleDict({name: _Head(hidden_size, self.shapes[name]) for name in further})

    def forward(self, hidden_states: Tensor, token_embeddings: Tensor) -> dict[str, Tensor]:
        """Both `[N, signal_tokens, in_features]` → tensor's name → `[N, *shape]`."""
        signals = self.fc((hidden_states + token_embeddings).to(self.fc.weight.dtype))  # [N, signal_tokens, d]
        queries = [self.query_embs, *(head.query_embs for head in self.heads.values())]
        states = self.tfm(signals, torch.cat(queries, dim=1).expand(len(signals), -1, -1))  # [N, all queries, d]
        layers = [self.model, *(head.model for head in self.heads.values())]
        parts = states.split([each.shape[1] for each in queries], dim=1)
        return {
            name: layer(part).view(len(signals), *shape)
            for (name, shape), layer, part in zip(self.shapes.items(), layers, parts, strict=True)
        }


class _Head(nn.Module):
    """Queries and last layer of one tensor."""

    def __init__(self, hidden_size: int, shape: tuple[int, ...]):
        super().__init__()
        self.model = nn.Linear(hidden_size, shape[-1])
        self.query_embs = nn.Parameter(torch.randn(1, _queries(shape), hidden_size))


def _queries(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) > 1 else 1


class SignalRows(nn.Module):
    """The signal tokens' own rows of the LLM's embedding and head: all that is ever trained of the two.

    They live beside the LLM, not inside it, so that its matrices stay frozen, shared and unchanged on disk.
    """

    def __init__(self, num_tokens: int, hidden_size: int):
        super().__init__()
        self.input = nn.Parameter(torch.randn(num_tokens, hidden_size) * 0.02)
        self.output = nn.Parameter(torch.randn(num_tokens, hidden_size) * 0.02)

    @torch.no_grad()
    def initialize_from(self, embeddings: Tensor, head: Tensor) -> None:
        """Starts every row at the mean of the LLM's own rows (`[vocab, hidden]` each), plus noise to tell them apart."""
        for rows, own in ((self.input, embeddings.float()), (self.output, head.float())):
            rows.copy_(own.mean(0) + own.std(0) * torch.randn(rows.shape, device=own.device) * 0.5)
