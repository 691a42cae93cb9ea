"""Media as prefixes: what a medium is stands beside the sequence, as keys and values of the LLM's upper layers.

After LLaMA-Adapter (Zhang et al. 2023, https://arxiv.org/abs/2303.16199, section 3): each of the upper layers has a trained
prefix of a few vectors; a medium's projected embedding is added to all of them, and attention to them, with a softmax of its
own, is added to the layer's own attention behind a gate that starts at zero. Unlike there, every medium has a prefix of its
own, at its own place: a token sees those of the media that stand at or before it, and how far back they are. In the sequence
itself stands at a medium's place one trained vector, the same for all media, which says that something was shown.

What has been shown travels in the KV cache, as one layer more than the LLM has: whoever crops, joins or reorders a cache
does the same to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextgpt.errors import UserInputError, did_you_mean

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

BRIDGES = {"linear": {}, "prefix": {"prefix_length": 10, "num_layers": None}}
LANGUAGE_MODELS = ("llama", "mistral")  # their attention is computed as `add_prefixes` does


# ---------------------------------------------------------------------- what a configuration says


def read_bridge(given: dict[str, Any] | None) -> dict[str, Any]:
    """What a model's configuration says of its input bridge, completed.

    Args:
        given: `{"kind": "linear"}`, which is also what None stands for, or `{"kind": "prefix", "prefix_length": 10,
            "num_layers": 6}`: vectors in a prefix, and in how many of the upper layers (all but the lowest two by default).

    Raises:
        UserInputError: the kind is none of these, or a field is not one of its own.
    """
    given = {"kind": "linear"} if given is None else given
    if not isinstance(given, dict) or given.get("kind") not in list(BRIDGES):
        raise UserInputError(f"input_bridge is {given!r}, expected {{kind: linear}} or {{kind: prefix, …}}")
    known = BRIDGES[given["kind"]]
    for name, value in given.items():
        if name == "kind":
            continue
        if name not in known:
            advice = did_you_mean(name, known) if known else "it has none"
            raise UserInputError(f"input_bridge: unknown key {name!r} of {given['kind']}; {advice}")
        if (type(value) is not int or value < 1) and (value is not None or known[name] is not None):
            raise UserInputError(f"input_bridge: {name} is {value!r}, expected a whole number of at least 1")
    return {"kind": given["kind"]} | known | given


def input_bridge(settings: dict[str, Any], embed_dim: int, language_model: PreTrainedModel) -> nn.Linear:
    """The input projection that the settings ask for, `[..., embed_dim]` → `[..., hidden]`; a prefix's is put on the LLM.

    Raises:
        UserInputError: it cannot be put on this LLM.
    """
    config = language_model.config.get_text_config()
    if settings["kind"] == "linear":
        return nn.Linear(embed_dim, config.hidden_size)
    if config.model_type not in LANGUAGE_MODELS:
        raise UserInputError(
            f"input_bridge: the LLM is {config.model_type!r}, and prefix works with {', '.join(LANGUAGE_MODELS)} alone: "
            "take kind: linear"
        )
    num_layers = settings["num_layers"] or max(1, config.num_hidden_layers - 2)
    if num_layers > config.num_hidden_layers:
        raise UserInputError(
            f"input_bridge: num_layers is {num_layers}, and the LLM has {config.num_hidden_layers}: give as many at most"
        )
    bridge = PrefixBridge(embed_dim, config, num_layers, settings["prefix_length"])
    for module in language_model.get_decoder().modules():  # an adapter may have wrapped the attention
        if hasattr(module, "o_proj") and module.layer_idx >= bridge.lowest:
            if add_prefixes not in module._forward_hooks.values():
                module.register_forward_hook(add_prefixes, with_kwargs=True)
    return bridge


def describe_bridge(settings: dict[str, Any]) -> str:
    """What an input bridge has beside its linear layer, in few words; empty where it has nothing."""
    if settings["kind"] == "linear":
        return ""
    layers = settings["num_layers"]
    return f"prefixes of {settings['prefix_length']} in {f'the top {layers}' if layers else 'all but the lowest two'} layers"


# ---------------------------------------------------------------------- what the layers see


class Shown(NamedTuple):
    """The media of a conversation by column of its cache.

    Args:
        media: `[batch, columns, hidden]`, projected; zeros where there is none.
        places: `[batch, columns]` in fp32, the position of each plus 1; 0 where there is none.
    """

    media: Tensor
    places: Tensor

    def widened(self, columns: int) -> Shown:
        """With so many columns, the further ones on the left and without media."""
        missing = columns - self.places.shape[1]
        return Shown(F.pad(self.media, (0, 0, missing, 0)), F.pad(self.places, (missing, 0))) if missing else self


class Prefixes(NamedTuple):
    """What a pass sees of media; rows with fewer of them than others have some that no token sees.

    Args:
        media: `[batch, media, hidden]`, projected.
        visible: `[batch, length, media]`, whether a token sees a medium.
        cos, sin: `[batch, media, head_dim]`, of the media's places.
        prefix: `[layers, prefix_length, hidden]`.
        gate: `[layers, heads]`.
        lowest: the lowest of these layers.
    """

    media: Tensor
    visible: Tensor
    cos: Tensor
    sin: Tensor
    prefix: Tensor
    gate: Tensor
    lowest: int


def add_prefixes(attention: nn.Module, args: tuple, kwargs: dict[str, Any], output: tuple) -> tuple | None:
    """A forward hook of a layer's attention: adds the attention to the `Prefixes` that came along, where any did."""
    seen: Prefixes | None = kwargs.get("media_prefixes")
    if seen is None:
        return None
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    def heads(projected: Tensor) -> Tensor:
        """`[batch, length, heads · head_dim]` → `[batch, heads, length, head_dim]`."""
        return projected.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]  # [batch, length, hidden]
    layer, each = attention.layer_idx - seen.lowest, seen.prefix.shape[1]
    prefixes = (seen.media[:, :, None] + seen.prefix[layer]).flatten(1, 2).to(states)  # [batch, media · each, hidden]
    queries, keys, values = (
        heads(attention.q_proj(states)),
        heads(attention.k_proj(prefixes)),
        heads(attention.v_proj(prefixes)),
    )
    queries, _ = apply_rotary_pos_emb(queries, queries, *kwargs["position_embeddings"])
    angles = (found.repeat_interleave(each, dim=1).to(keys) for found in (seen.cos, seen.sin))
    keys, _ = apply_rotary_pos_emb(keys, keys, *angles)
    keys, values = (of.repeat_interleave(attention.num_key_value_groups, dim=1) for of in (keys, values))

    scores = (queries @ keys.transpose(2, 3)).float() * attention.scaling  # [batch, heads, length, media · each]
    unseen = ~seen.visible.repeat_interleave(each, dim=2)[:, None].to(scores.device)
    shares = scores.masked_fill(unseen, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(unseen, 0.0)
    shares = shares * seen.gate[layer].tanh().to(shares)[:, None, None]
    attended = (shares.to(values) @ values).transpose(1, 2).flatten(2)
    # A last row of zeros gives the output layer's bias, which is in the LLM's own attention already.
    added = attention.o_proj(F.pad(attended, (0, 0, 0, 1)))
    return output[0] + (added[:, :-1] - added[:, -1:]).to(output[0]), *output[1:]


# ---------------------------------------------------------------------- the bridge


class PrefixBridge(nn.Linear):
    """The input projection, and with it all that is trained of the prefixes.

    What it gives has the scale of the states that the layers' keys are made of: LLaMA-Adapter norms its projected
    pictures too.

    Args:
        embed_dim: of the encoder.
        config: the LLM's.
        num_layers: upper layers that have a prefix.
        prefix_length: vectors in it.
    """

    def __init__(self, embed_dim: int, config: Any, num_layers: int, prefix_length: int):
        super().__init__(embed_dim, config.hidden_size)
        self.depth, self.lowest = config.num_hidden_layers, config.num_hidden_layers - num_layers
        self.placeholder = nn.Parameter(torch.randn(config.hidden_size) * 0.02)
        self.prefix = nn.Parameter(torch.randn(num_layers, prefix_length, config.hidden_size))
        self.gate = nn.Parameter(torch.zeros(num_layers, config.num_attention_heads))

    def forward(self, features: Tensor) -> Tensor:
        """`[..., embed_dim]` → `[..., hidden]`, what is added to a prefix."""
        return F.layer_norm(super().forward(features), (self.out_features,))

    @torch.no_grad()
    def initialize_from(self, embeddings: Tensor) -> None:
        """Starts the placeholder's own embedding at the mean of the LLM's, `[vocab, hidden]`."""
        self.placeholder.copy_(embeddings.float().mean(0))

    def beside(self, embeddings: Tensor, placeholders: Tensor, projected: Tensor | None) -> Tensor:
        """Embeddings with the media beside them, for a pass (`nextgpt.adapters.run`).

        Args:
            embeddings: `[batch, length, hidden]`.
            placeholders: `[batch, length]`, where media stand.
            projected: `[media, hidden]` in row-major order; None where there are none.

        Returns:
            `[batch, length, hidden + hidden + 1]`: the embeddings, with the placeholder's own where media stand; the media;
            and 1 where there is one.
        """
        mask = placeholders[..., None]
        own = torch.where(mask, self.placeholder.to(embeddings), embeddings)
        media = torch.zeros_like(embeddings)
        if projected is not None:
            media = media.masked_scatter(mask, projected.to(embeddings))
        return torch.cat([own, media, mask.to(embeddings)], dim=-1)

    def apart(self, given: Tensor) -> tuple[Tensor, Shown]:
        """What `beside` gives → the embeddings `[batch, length, hidden]`, and the media, 1 as their place."""
        embeddings, media, is_medium = given.split([self.out_features, self.out_features, 1], dim=-1)
        return embeddings, Shown(media, is_medium[..., 0].float())

    def look_back(self, decoder: nn.Module, inputs: dict[str, Any], new: Shown) -> tuple[Prefixes | None, Shown]:
        """What a pass sees of media (None where there are none so far), and what is to be kept for the next one.

        Args:
            decoder: the LLM below its head.
            inputs: of the pass, an adapter's virtual tokens included.
            new: the media that come with it, as `apart` gives them.

        Raises:
            UserInputError: the cache is static.
        """
        embeddings, positions, cache = inputs["inputs_embeds"], inputs["position_ids"], inputs["past_key_values"]
        if getattr(cache, "is_compileable", False):
            raise UserInputError(
                "an input_bridge of kind prefix needs a dynamic cache: leave cache_implementation='static' out"
            )
        past, length = cache.get_seq_length() if cache is not None else 0, embeddings.shape[1]
        if positions is None:
            positions = torch.arange(past, past + length, device=embeddings.device)[None]
        positions = positions.expand(len(embeddings), -1)
        new = new.widened(length)  # by virtual tokens
        shown = Shown(new.media, new.places * (positions + 1))
        if past:
            kept = self._kept(cache) or Shown(new.media[:, :0], new.places[:, :0])
            shown = Shown(*(torch.cat(pair, dim=1) for pair in zip(kept.widened(past), shown, strict=True)))
        return self._prefixes(decoder, embeddings, positions, shown), shown

    def _prefixes(self, decoder: nn.Module, embeddings: Tensor, positions: Tensor, shown: Shown) -> Prefixes | None:
        is_medium = shown.places > 0
        count = int(is_medium.sum(1).max())
        if not count:
            return None
        columns = is_medium.int().argsort(dim=1, descending=True, stable=True)[:, :count]  # [batch, media]
        media = shown.media.gather(1, columns[..., None].expand(-1, -1, self.out_features))
        places = shown.places.gather(1, columns)
        total = is_medium.shape[1]
        own = torch.arange(total - embeddings.shape[1], total, device=columns.device)
        visible = (places > 0)[:, None] & (columns[:, None] <= own[None, :, None])
        # Together with the pass's own: the frequencies of some depend on the largest of the positions.
        angles = decoder.rotary_emb(embeddings, torch.cat([(places.long() - 1).clamp(min=0), positions], dim=1))
        cos, sin = (each[:, :count] for each in angles)
        return Prefixes(media, visible, cos, sin, self.prefix, self.gate, self.lowest)

    def keep(self, cache: Cache, shown: Shown) -> None:
        """Puts what `look_back` gave into a pass's cache, behind the LLM's layers: media as keys, places as values."""
        from transformers.cache_utils import DynamicLayer

        layer = DynamicLayer()
        layer.update(shown.media[:, None], shown.places[:, None, :, None])
        cache.layers[self.depth :] = [layer]

    def _kept(self, cache: Cache) -> Shown | None:
        """What `keep` put there."""
        layer = cache.layers[self.depth] if len(cache.layers) > self.depth else None
        return None if layer is None else Shown(layer.keys[:, 0], layer.values[:, 0, :, 0])
