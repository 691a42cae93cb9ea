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
    projection = OutputProjection(facts["in_dim"], facts["out_dim"], facts["queries"]).eval()
    weights = {key: reference_weight(facts["shapes"][key], key, i) for i, key in enumerate(sorted(facts["shapes"]))}
    projection.load_state_dict(weights, strict=True)
    assert sum(p.numel() for p in projection.parameters()) == facts["params"]
    with torch.no_grad():
        found = projection(recorded[f"{modality}.hidden_states"], recorded[f"{modality}.token_embeddings"])
    torch.testing.assert_close(found, recorded[f"{modality}.conditioning"], atol=1e-4, rtol=0)


def test_signal_rows_start_near_the_language_models_own_rows():
    torch.manual_seed(0)
    rows = SignalRows(6, 32)
    own = torch.randn(500, 32) * 0.1 + 3
    rows.initialize_from(own, own * 2)
    assert (rows.input - 3).abs().mean() < 0.1 and (rows.output - 6).abs().mean() < 0.2
    assert torch.pdist(rows.input.detach()).min() > 0.05  # and can be told apart
