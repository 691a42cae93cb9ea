"""The server on two machines: two raylets on this one, with tiny random models. Not a part of `make test`; minutes:

    python -m pytest tests/nextgpt/serve/cluster.py -n 0 -s

A session's second turn finds its cache; while a whole node is killed every request is answered or told so, and the service
is whole again within a minute; an update loses no request. The loss of the head is not tried: it ends the service.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import APIError, OpenAI

from tiny_server import MODEL, tiny_pipeline

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'nextgpt[ray]'")
from ray import serve  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from nextgpt.serve.cluster.deployments import build  # noqa: E402

PORT = 8911
LOST = "machine_lost"
LONG = {"require": {"image": 2}, "image": {"num_inference_steps": 60}}


def arguments(folder: str, **language) -> dict:
    """Of the application: two replicas of each deployment but the API's, which stays on the head."""
    two = {"num_replicas": 2, "autoscaling_config": None, "ray_actor_options": {"num_cpus": 1}}
    return {
        "model": folder,
        "device": "cpu",
        "settings": {"model": MODEL, "port": PORT, "max_per_key": 64, "max_sessions": 64},
        "language_model": two | language,
        "decoders": {"image": two},
        "api": {"ray_actor_options": {"num_cpus": 0, "resources": {"head": 0.01}}},
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    tiny_pipeline(folder, ["image"])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 6, "resources": {"head": 1}})
    cluster.worker = cluster.add_node(num_cpus=4)
    cluster.folder = str(folder / "model")
    ray.init(address=cluster.address)
    # Both nodes are on this machine, where one port has room for one proxy.
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(build(arguments(cluster.folder)), name="nextgpt")
    yield cluster
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def client(cluster):
    with OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="unused", max_retries=0, timeout=120) as client:
        yield client


def ask(client, messages, stream=False, **extra):
    options = {"model": MODEL, "messages": messages, "max_completion_tokens": 40, "seed": 1, "stream": stream}
    return client.chat.completions.create(**options, extra_body=extra)


def conversation(client, i):
    """A first turn; returns its messages with the answer, and the node that gave it."""
    messages = [{"role": "user", "content": f"conversation number {i}, of several words"}]
    answer = ask(client, messages, require={"image": 1})
    messages.append({"role": "assistant", "content": answer.choices[0].message.content})
    return messages, answer.system_fingerprint


def test_second_turns_go_where_their_cache_is(client):
    with ThreadPoolExecutor(4) as pool:
        firsts = list(pool.map(lambda i: conversation(client, i), range(40)))
        again = [[*messages, {"role": "user", "content": "and again"}] for messages, _ in firsts]
        seconds = list(pool.map(lambda messages: ask(client, messages), again))
    nodes = {node for _, node in firsts}
    cached = sum(answer.usage.prompt_tokens_details.cached_tokens > 0 for answer in seconds)
    print(f"{len(nodes)} nodes answered; {cached} of {len(seconds)} second turns found their cache")
    assert len(nodes) == 2 and cached >= 0.95 * len(seconds)


def test_a_node_that_is_lost_takes_no_request_with_it_in_silence(cluster, client):
    worker = cluster.worker.node_id
    pinned = []
    for i in range(100, 200):
        messages, node = conversation(client, i)
        if node == worker:
            pinned.append([*messages, {"role": "user", "content": "and again"}])
        if len(pinned) == 4:
            break
    assert len(pinned) == 4, "too few conversations came to the worker"
    began = [threading.Event() for _ in pinned]

    def one(i):
        """A turn on the worker, the first streamed: `answered`, or the error's code."""
        try:
            began[i].set()
            if i == 0:
                chunks = list(ask(client, pinned[i], stream=True, **LONG))
                assert {chunk.system_fingerprint for chunk in chunks[1:]} == {worker}
                return "answered"
            ask(client, pinned[i], **LONG)
            return "answered"
        except APIError as error:
            return error.code

    with ThreadPoolExecutor(len(pinned)) as pool:
        running = [pool.submit(one, i) for i in range(len(pinned))]
        for event in began:
            event.wait()
        time.sleep(1.5)
        under_way = sum(not each.done() for each in running)
        killed = time.monotonic()
        cluster.remove_node(cluster.worker, allow_graceful=False)
        outcomes = [each.result(timeout=120) for each in running]
    print(f"{under_way} requests ran on the node that was killed: {outcomes}")
    assert under_way >= 3
    assert set(outcomes) <= {"answered", LOST}

    while time.monotonic() - killed < 60:
        try:
            with ThreadPoolExecutor(4) as pool:
                answers = list(pool.map(lambda i: ask(client, [{"role": "user", "content": f"hello {i}"}]), range(8)))
            replicas = serve.status().applications["nextgpt"].deployments["LanguageModel"].replica_states
            if len(answers) == 8 and replicas.get("RUNNING") == 2 and len(replicas) == 1:
                break
        except APIError:
            time.sleep(1)
    else:
        pytest.fail("the service was not whole within a minute")
    print(f"whole again after {time.monotonic() - killed:.0f} s")


def test_an_update_loses_no_request(cluster, client):
    over, outcomes = threading.Event(), []

    def keep_asking(i):
        while not over.is_set():
            try:
                outcomes.append(bool(ask(client, [{"role": "user", "content": f"hello {i}"}]).choices))
            except APIError as error:
                outcomes.append(str(error))

    with ThreadPoolExecutor(3) as pool:
        for i in range(3):
            pool.submit(keep_asking, i)
        time.sleep(2)
        before = len(outcomes)
        serve.run(build(arguments(cluster.folder, max_ongoing_requests=8)), name="nextgpt")
        time.sleep(2)
        over.set()
    print(f"{len(outcomes)} requests, {len(outcomes) - before} of them during the update: {outcomes.count(True)} answered")
    assert outcomes and all(outcome is True for outcome in outcomes)
