"""The output projection equals the reference implementation's; the signal rows start sensibly."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from nextgpt.projections import OutputProjection, SignalRows

FIXTURE = Path(__file__).parents[1] / "fixtures" / "parity" / "output_projection.safetensors"


def reference_weight(shape: list[int], key: str, index: int) -> torch.Tensor:
    """The rule in the fixture's metadata (`weights_rule`)."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3000 + index)) * 0.05
    return weight + 1 if key.endswith("weight") and len(shape) == 1 else weight


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_output_projection_equals_the_reference(modality):
    with safe_open(FIXTURE, "pt") as file:
        facts = json.loads(file.metadata()[modality])
    recorded = load_file(FIXTURE)
    projection = OutputProjection(facts["in_dim"], {"prompt_embeds": (facts["queries"], facts["out_dim"])}).eval()
    weights = {key: reference_weight(facts["shapes"][key], key, i) for i, key in enumerate(sorted(facts["shapes"]))}
    projection.load_state_dict(weights, strict=True)
    assert sum(p.numel() for p in projection.parameters()) == facts["params"]
    with torch.no_grad():
        found = projection(recorded[f"{modality}.hidden_states"], recorded[f"{modality}.token_embeddings"])
    torch.testing.assert_close(found["prompt_embeds"], recorded[f"{modality}.conditioning"], atol=1e-4, rtol=0)


def test_a_further_tensor_has_its_own_queries_and_head_and_leaves_the_first_ones_names_as_they_were():
    shapes = {"prompt_embeds": (7, 12), "pooled_prompt_embeds": (5,)}
    torch.manual_seed(0)
    alone = OutputProjection(8, {"prompt_embeds": (7, 12)}, hidden_size=16, num_layers=1)
    torch.manual_seed(0)
    both = OutputProjection(8, shapes, hidden_size=16, num_layers=1)
    further = {"heads.pooled_prompt_embeds.query_embs", "heads.pooled_prompt_embeds.model.weight"}
    further |= {"heads.pooled_prompt_embeds.model.bias"}
    assert set(both.state_dict()) - set(alone.state_dict()) == further
    assert all(torch.equal(tensor, both.state_dict()[name]) for name, tensor in alone.state_dict().items())

    states = torch.randn(3, 4, 8)
    made = both(states, torch.zeros_like(states))
    assert {name: tuple(tensor.shape) for name, tensor in made.items()} == {n: (3, *shape) for n, shape in shapes.items()}
    made["pooled_prompt_embeds"].sum().backward()
    assert both.heads["pooled_prompt_embeds"].query_embs.grad is not None and both.model.weight.grad is None


def test_signal_rows_start_near_the_language_models_own_rows():
    torch.manual_seed(0)
    rows = SignalRows(6, 32)
    own = torch.randn(500, 32) * 0.1 + 3
    rows.initialize_from(own, own * 2)
    assert (rows.input - 3).abs().mean() < 0.1 and (rows.output - 6).abs().mean() < 0.2
    assert torch.pdist(rows.input.detach()).min() > 0.05  # and can be told apart
