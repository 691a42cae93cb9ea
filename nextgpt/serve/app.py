"""The application: its addresses, and what each of them answers."""

# Without postponed annotations: FastAPI reads the bodies' types, which are made for the model, off the functions below.

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from nextgpt import __version__
from nextgpt.pipeline import NextGPTPipeline
from nextgpt.serve.answering import Answering
from nextgpt.serve.chat import Chat, check_model
from nextgpt.serve.conversation import MEDIA_PATH, ConversationReader
from nextgpt.serve.errors import ApiError, from_exception, from_validation, invalid
from nextgpt.serve.fetch import Fetcher
from nextgpt.serve.gate import Admission, Gate
from nextgpt.serve.media_store import MediaStore
from nextgpt.serve.metrics import Metrics
from nextgpt.serve.responses import ChatCompletion, ErrorAnswer, GeneratedImages, Health, Model, Models
from nextgpt.serve.schema import chat_request, image_request
from nextgpt.serve.settings import ServerSettings

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 60
PICTURES = "image"  # the kind of media that OpenAI has an address of its own for
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in {
        400: "the request cannot be answered as it is",
        401: "no API key, or a wrong one",
        403: "the server is called by another name, or from another page",
        404: "there is nothing here",
        405: "not in this way",
        408: "the body came too slowly",
        413: "too large",
        415: "not JSON",
        431: "too long headers",
        429: "no place now; `Retry-After` says when to ask again",
        500: "the server failed",
        503: "the server is closing",
        504: "it took too long",
    }.items()
}


def create_app(pipeline: NextGPTPipeline, settings: ServerSettings, created: int = 0) -> FastAPI:
    """The application over a pipeline.

    Args:
        pipeline: answers.
        settings: who may ask, and how much.
        created: when the model was loaded, in seconds since 1970.
    """
    metrics, store, fetcher = Metrics(), MediaStore(settings), Fetcher(settings)
    admission = Admission(settings, metrics)
    answering = Answering(pipeline, store, metrics, settings)
    chat = Chat(settings, answering, ConversationReader(settings, fetcher, store), admission, metrics)
    metrics.kept_media.set_function(lambda: len(store))
    if engine := getattr(pipeline, "engine", None):  # one that is on other machines has its own
        metrics.watch(engine.stats)
        engine.limits.max_batch_rows = max(engine.limits.max_batch_rows, settings.max_running)
        engine.limits.max_waiting = max(engine.limits.max_waiting, settings.max_running)

    async def sweep() -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            store.drop_expired()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(sweep())
        yield
        sweeping.cancel()
        admission.closing = True
        answering.close()
        await fetcher.close()
        store.close()

    app = FastAPI(title="NExT-GPT", version=__version__, lifespan=lifespan, responses=ERRORS, docs_url=None, redoc_url=None)
    app.state.answering, app.state.admission, app.state.store = answering, admission, store
    ChatBody, ImageBody = chat_request(pipeline, settings), image_request(settings)
    model = Model(
        id=settings.model,
        created=created,
        input_modalities=list(pipeline.input_modalities),
        output_modalities=list(pipeline.output_modalities),
    )

    @app.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={200: {"content": {"text/event-stream": {}}, "description": "the answer, whole or as it comes"}},
    )
    async def complete(body: ChatBody, request: Request) -> Any:
        """Answers a conversation with any mix of text and media."""
        return await chat.complete(body, request)

    if PICTURES in pipeline.output_modalities:

        @app.post("/v1/images/generations", response_model=GeneratedImages)
        async def generate_images(body: ImageBody, request: Request) -> Any:
            """Draws what a prompt says; the language model reads it, as in a conversation."""
            return await chat.draw(body, request)

    @app.get("/v1/models")
    async def list_models() -> Models:
        """The model."""
        return Models(data=[model])

    @app.get("/v1/models/{name}")
    async def show_model(name: str) -> Model:
        """The model, by its name."""
        check_model(name, settings)
        return model

    kinds = {"application/octet-stream": {}, "image/png": {}, "audio/wav": {}, "video/mp4": {}}
    file = {200: {"content": kinds, "description": "the file"}, 206: {"content": kinds, "description": "a part of it"}}

    @app.get(MEDIA_PATH + "{name}", response_class=Response, responses=file)
    async def show_medium(name: str) -> Response:
        """A medium of an answer."""
        kept = store.find(name.partition(".")[0])
        if kept is None:
            raise ApiError(
                404, "no such medium (any more): its time is over, or its address is wrong", code="unknown_medium"
            )
        headers = {
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": f"private, max-age={int(settings.media_seconds)}",
            "Content-Security-Policy": "default-src 'none'; sandbox",
        }
        return FileResponse(kept.path, media_type=kept.mime_type, headers=headers)

    @app.get("/health")
    async def live() -> Health:
        """Whether the server lives."""
        return Health(status="ok")

    @app.get("/ready", responses={503: {"model": Health}})
    async def ready(response: Response) -> Health:
        """Whether it takes requests."""
        response.status_code = 503 if admission.closing else 200
        return Health(status="closing" if admission.closing else "ok")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> PlainTextResponse:
        """Counters, as Prometheus reads them."""
        return PlainTextResponse(metrics.text())

    _answer_errors(app, metrics)
    _describe(app, bool(settings.api_keys))
    app.state.unguarded = []  # beginnings of paths where something is mounted that asks for its own key
    app.add_middleware(Gate, settings=settings, metrics=metrics, unguarded=app.state.unguarded)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.allowed_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        )
    return app


def _answer_errors(app: FastAPI, metrics: Metrics) -> None:
    """All errors in one form."""

    def answer(error: ApiError) -> Response:
        metrics.errors.labels(error.code).inc()
        # JSON in ASCII: what a message quotes need not be whole characters.
        return Response(json.dumps(error.body), error.status, error.headers, "application/json")

    @app.exception_handler(ApiError)
    async def ours(request: Request, error: ApiError) -> Response:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def unfit(request: Request, error: RequestValidationError) -> Response:
        return answer(from_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def routed(request: Request, error: HTTPException) -> Response:
        match error.status_code:
            case 404:
                found = ApiError(404, f"there is nothing at {request.url.path}", code="unknown_url")
            case 405:
                message = f"{request.method} is not how {request.url.path} is used"
                found = ApiError(405, message, code="method_not_allowed", headers=dict(error.headers or {}))
            case 400:
                found = invalid("the body cannot be read as JSON", code="invalid_json")
            case status if status < 500:
                found = ApiError(status, str(error.detail), code="refused")
            case _:
                found = from_exception(error)
        return answer(found)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        if (known := from_exception(error)).code == "internal_error":
            logger.exception("a request failed", exc_info=error)
        return answer(known)


def _describe(app: FastAPI, has_keys: bool) -> None:
    """The schema of the API, without FastAPI's own form of errors, which is never given."""
    own = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = own()
            for path in schema["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(name, None)
            if has_keys:
                schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                schema["security"] = [{"key": []}]
        return app.openapi_schema

    app.openapi = openapi
