"""`nextgpt serve --engine ray`: starts the application on a Ray cluster, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

from nextgpt.errors import ModelLoadError
from nextgpt.serve.settings import ServerSettings


def launch(settings: ServerSettings, arguments: dict[str, Any], on_ready: Callable[[str], None]) -> None:
    """Serves on the cluster that `RAY_ADDRESS` names, or on one that is started here, until Ctrl-C or SIGTERM.

    Args:
        settings: who may ask, how much, and where.
        arguments: of [`nextgpt.serve.cluster.deployments.build`], the settings left out.
        on_ready: called with the address once it answers.

    Raises:
        ModelLoadError: Ray is not installed.
    """
    try:
        from ray import serve
    except ImportError:
        raise ModelLoadError("--engine ray needs Ray: pip install 'nextgpt[ray]'") from None
    from nextgpt.serve.cluster.deployments import build
    from nextgpt.serve.server import address_of

    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    serve.start(http_options={"host": settings.host, "port": settings.port})
    try:
        serve.run(build(arguments | {"settings": vars(settings)}), name="nextgpt")
        on_ready(address_of(settings.host, settings.port))
        stopped.wait()
    finally:
        serve.shutdown()
