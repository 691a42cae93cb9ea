"""Errors as OpenAI's API has them: `{"error": {"message", "type", "param", "code"}}` with a status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nextgpt.errors import (
    ContractError,
    ConversationTooLong,
    DeadlineExceeded,
    EngineError,
    MachineLost,
    ModelLoadError,
    NextGPTError,
    QueueFullError,
    UserInputError,
)
from nextgpt.serve.schema import NEUTRAL

INVALID, AUTHENTICATION, PERMISSION = "invalid_request_error", "authentication_error", "permission_error"
RATE_LIMIT, SERVER = "rate_limit_error", "server_error"
RETRY_AFTER = 2  # seconds
LIMITS = {"messages": "max_messages", "content": "max_parts", "parts": "max_parts"}  # field → the setting that bounds it


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: for a person: what was found, what was expected, what to do.
        type, code: for a program.
        param: the field of the request that it is about.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.type, self.code, self.param = status, message, type, code, param
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    """A request that cannot be answered as it is: status 400."""
    return ApiError(400, message, param=param, code=code)


def too_large(message: str, param: str | None = None) -> ApiError:
    """A request that is too large: status 413."""
    return ApiError(413, message, param=param, code="request_too_large")


def too_many(message: str) -> ApiError:
    """A request for which there is no place now: status 429."""
    return ApiError(429, message, type=RATE_LIMIT, code="rate_limit_exceeded", headers={"Retry-After": str(RETRY_AFTER)})


def too_late(message: str) -> ApiError:
    """An answer that took too long: status 504; clients are told not to ask again by themselves."""
    return ApiError(504, message, type=SERVER, code="deadline_exceeded", headers={"X-Should-Retry": "false"})


def from_exception(error: BaseException, param: str | None = "messages") -> ApiError:
    """What the pipeline raised, as an answer; what is nobody's fault but ours says no more than that."""
    match error:
        case ApiError():
            return error
        case ConversationTooLong():
            return invalid(str(error), param, "context_length_exceeded")
        case ContractError():
            return invalid(str(error), "require", "cannot_be_given")
        case UserInputError():
            return invalid(str(error), param)
        case QueueFullError():
            return too_many(str(error))
        case DeadlineExceeded():
            return too_late(str(error))
        case EngineError():
            code = "machine_lost" if isinstance(error, MachineLost) else "worker_crashed"
            return ApiError(503, str(error), type=SERVER, code=code, headers={"Retry-After": str(RETRY_AFTER)})
        case ModelLoadError():  # its message names the server's folders
            return ApiError(
                500, "a part of the model could not be loaded; the server's log says more", type=SERVER, code="model_error"
            )
        case NextGPTError():
            return ApiError(500, str(error), type=SERVER, code="model_error")
        case _:
            return ApiError(500, "the server failed; its log says more", type=SERVER, code="internal_error")


def from_validation(errors: Sequence[dict[str, Any]]) -> ApiError:
    """What does not fit the schema, as one error about the first field that does not fit.

    Args:
        errors: pydantic's, as `ValidationError.errors()` gives them.
    """
    if any(each["type"] == "json_invalid" for each in errors):
        return invalid("the body is not JSON; check its quotes and brackets", code="invalid_json")
    first = max(errors, key=lambda each: len(each["loc"]))  # of what is one thing or another, the one that fits best
    param = _param(first["loc"])
    names = (param or "").split(".")
    if name := next((name for name in (names[0], names[-1]) if name in NEUTRAL), None):
        param = name if name == names[0] else param
        return invalid(f"{param} is not supported here; leave it out ({NEUTRAL[name]})", param, "unsupported_parameter")
    if first["type"] == "too_long" and (limit := LIMITS.get(names[-1])):
        return too_large(f"{param} has more than {first['ctx']['max_length']} entries ({limit})", param)
    if first["type"] == "extra_forbidden":
        return invalid(f"{param} is no field of this API; leave it out", param, "unknown_parameter")
    if first["type"] == "missing":
        return invalid(f"{param or 'the body'} is missing", param, "missing_required_parameter")
    return invalid(f"{param or 'the body'}: {first['msg'][:1].lower()}{first['msg'][1:]}", param)


def _param(place: Sequence[str | int]) -> str | None:
    """Where a field stands, as `messages.0.content`, without what pydantic says of the alternatives in between."""
    names: list[str] = []
    for i, each in enumerate(place):
        is_tag = i > 1 and isinstance(place[i - 1], int) and bool({"messages", "content"} & set(names[-2:-1]))
        if isinstance(each, int):
            names.append(str(each))
        elif each.isidentifier() and each not in ("body", "str", "int", "float", "bool", "none") and not is_tag:
            names.append(each)
    return ".".join(names) or None
