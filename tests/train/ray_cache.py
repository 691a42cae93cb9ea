"""The feature cache by Ray Data on two machines: two raylets on this one. Not a part of `make test`; minutes:

    python -m pytest tests/train/ray_cache.py -n 0

Its files are those of the local command, bit for bit; what is there already is not computed again; a bad item is named.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextgpt.errors import UserInputError
from nextgpt.train.data.cache import cache_features
from tiny_training import drawing, naming, settings, write_lines

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'nextgpt[ray]'")
from ray.cluster_utils import Cluster  # noqa: E402

PICTURES = 50
BATCH = 4  # so that a kind has more batches than a shard and the last one is cut short


@pytest.fixture(scope="module", autouse=True)
def cluster():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def data(world) -> str:
    random = np.random.default_rng(0)
    names = [f"picture{number}" for number in range(PICTURES)]
    for name in names:
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(world / "pictures" / f"{name}.png")
    return write_lines(world / "many.jsonl", [make(name) for name in names for make in (naming, drawing)])


def cache(world, tmp_path, data: str, features: str, **options) -> Path:
    values = settings(world, "instruct", tmp_path / "out", data=[data], feature_batch_size=BATCH)
    values |= {"features": str(tmp_path / features)}
    config = tmp_path / f"{features}.yaml"
    config.write_text(json.dumps(values))
    return cache_features("instruct", str(config), **options)


def shards(folder: Path) -> dict[str, bytes]:
    """Path → content of all shards."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.safetensors")}


def test_the_files_equal_the_local_commands_bit_for_bit(world, tmp_path, data):
    local = shards(cache(world, tmp_path, data, "local"))
    folder = cache(world, tmp_path, data, "ray", engine="ray", processes=3)
    assert len(local) == 2 and shards(folder) == local  # 50 pictures and 50 captions: 13 batches each

    first, *_ = sorted(folder.rglob("*.safetensors"))
    written = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors") if file != first}
    first.unlink()  # as if the command had been killed before it was written
    assert shards(cache(world, tmp_path, data, "ray", engine="ray", processes=2)) == local
    assert {file: file.stat().st_mtime_ns for file in written} == written, "what was there is not written again"


def test_a_bad_item_is_named_or_left_out(world, tmp_path, data):
    (world / "pictures" / "cut.png").write_bytes(b"no picture")
    lines = Path(data).read_text().splitlines()
    broken = write_lines(world / "broken.jsonl", [*(json.loads(line) for line in lines[:8]), naming("cut")])
    with pytest.raises(UserInputError, match="broken.jsonl:9: .*cut.png"):
        cache(world, tmp_path, broken, "bad", engine="ray", processes=2)
    values = ["on_bad_item=skip"]
    folder = cache(world, tmp_path, broken, "good", engine="ray", processes=2, overrides=values)
    assert shards(folder) == shards(cache(world, tmp_path, broken, "good locally", overrides=values))


def test_latents_are_left_to_the_local_command(world, tmp_path, data):
    with pytest.raises(UserInputError, match="denoising=true: .* leave --engine ray out"):
        cache(world, tmp_path, data, "latents", engine="ray", overrides=["denoising=true"])
