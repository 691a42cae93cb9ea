"""The two trained bridges: encoder embedding → LLM, and LLM signal states → diffusion conditioning.

They know shapes only; which modality or decoder they serve is the model's business.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OutputProjection(nn.Module):
    """Reads one run of signal tokens out into the conditioning of a diffusion model (NExT-GPT, section 3; after GILL).

    `Linear(in → d)` on the sum of the signal tokens' last hidden states and input embeddings, an encoder-decoder
    transformer (pre-norm, no dropout) read out through learned queries, then `Linear(d → out)`. Parameter names follow
    the original checkpoints.

    Args:
        in_features: hidden size of the LLM.
        out_features: width of the decoder's conditioning.
        num_queries: length of the decoder's conditioning (77 for Stable Diffusion, 1 for AudioLDM).
        hidden_size, num_layers, num_heads: size of the transformer; the feed-forward is 4 × `hidden_size`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_queries: int,
        hidden_size: int = 512,
        num_layers: int = 4,
        num_heads: int = 4,
    ):
        super().__init__()
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
        self.model = nn.Linear(hidden_size, out_features)
        self.query_embs = nn.Parameter(torch.randn(1, num_queries, hidden_size))

    def forward(self, hidden_states: Tensor, token_embeddings: Tensor) -> Tensor:
        """Both `[N, signal_tokens, in_features]` → conditioning `[N, num_queries, out_features]`."""
        signals = self.fc((hidden_states + token_embeddings).to(self.fc.weight.dtype))  # [N, signal_tokens, d]
        queries = self.query_embs.expand(len(signals), -1, -1)  # [N, num_queries, d]
        return self.model(self.tfm(signals, queries))


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
