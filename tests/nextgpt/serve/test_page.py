"""The chat's page beside the API, over one pipeline."""

from __future__ import annotations

import threading
from queue import Queue

import pytest
from gradio_client import Client

from nextgpt.demo.app import mounted
from nextgpt.serve.server import Server
from nextgpt.serve.settings import ServerSettings
from tiny_server import ASK, MODEL, send, tiny_pipeline

KEY = "a-secret-key"


@pytest.mark.slow
def test_the_page_stands_beside_the_api_and_asks_for_the_same_key(tmp_path):
    pipe = tiny_pipeline(tmp_path, ["image"])
    addresses: Queue[str] = Queue()
    running = Server(pipe, ServerSettings(model=MODEL, port=0, api_keys=(KEY,)))
    running.app.state.unguarded.append("/chat")
    with mounted(pipe, running.app, keys=(KEY,)):
        thread = threading.Thread(target=running.run, args=(addresses.put,))
        thread.start()
        try:
            address = addresses.get(timeout=60)
            assert send(address, ASK, Authorization=f"Bearer {KEY}")[0] == 200
            with pytest.raises(Exception, match="(?i)credentials|login|auth"):
                Client(f"{address}/chat", auth=("me", "wrong"), verbose=False)
            client = Client(f"{address}/chat", auth=("me", KEY), verbose=False)
            conversation = client.predict(api_name="/new_conversation")
            message = client.predict(conversation, "hello", [], api_name="/ask")
            assert message["role"] == "assistant"
            assert send(address, None, path="/chat/", method="GET", Host="evil.example")[0] == 403
            assert send(address, None, path="/chat/", method="GET", Origin="https://evil.example")[0] == 403
        finally:
            running.stop()
            thread.join()
