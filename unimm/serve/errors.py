"""What goes wrong, in OpenAI's form: {"error": {"message", "type", "param", "code"}}, and nothing of the server's inside.

`ApiError` is what our own code raises for a client to read. Everything else is answered by a fixed sentence and a request id,
under which the log has the exception: its text may hold paths, addresses or what another client has sent.
"""

import logging
import secrets
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException

logger = logging.getLogger(__name__)

SENTENCES = {
    400: "The request cannot be read: send JSON as /docs describes it.",
    404: "There is no such address here: those of the interface begin with /v1, and /docs lists them.",
    405: "This address does not take that method: /docs lists them.",
}
"""What is said where a library refuses a request."""


class ApiError(Exception):
    """An answer that is an error.

    Args:
        message: one sentence that says what to do. It goes to the client.
        kind: OpenAI's `type`, which metrics count by.
        param: the field that is meant, such as "messages.0.content".
        code: a short word for programs, such as "model_not_found".
        retry_after: seconds after which to ask again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI writes it. What of it a client has written may be no valid Unicode."""
        message, param = _printable(self.message), None if self.param is None else _printable(self.param)
        return {"error": {"message": message, "type": self.kind, "param": param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """The answer."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 408:  # OpenAI's client would ask again at once, and wait as long in vain
            headers["x-should-retry"] = "false"
        return JSONResponse(self.body, self.status, headers)


class ErrorDetail(BaseModel):
    """Of an error: a sentence, its type, the field that is meant, and a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


def as_api_error(error: BaseException) -> ApiError:
    """The answer that a client gets for an exception."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        sentence = SENTENCES.get(error.status_code, "The request was refused: /docs says what is understood.")
        return ApiError(error.status_code, sentence)
    request_id = secrets.token_hex(8)
    logger.error("Request %s failed.", request_id, exc_info=error)
    sentence = f"The server failed at this request: its log has the reason under the id {request_id}."
    return ApiError(500, sentence, "server_error", code="internal_error")


def add_error_handlers(app: FastAPI) -> None:
    """Let an app answer every exception in that form."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        told = _wrong_type(request, error) or as_api_error(error)
        request.app.state.service.metrics.failed(told)
        return told.response

    for kind in (ApiError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)


def _wrong_type(request: Request, error: Exception) -> ApiError | None:
    """The answer where a body was not read because its Content-Type says that it is something else, as curl -d does."""
    body = error.body if isinstance(error, RequestValidationError) else None
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if isinstance(body, bytes):
        sentence = 'The body is read as JSON where its header says so: send "Content-Type: application/json".'
        return ApiError(400, sentence, code="invalid_content_type")
    if isinstance(body, FormData) and kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        sentence = "This address reads a form with files: send multipart/form-data, as /docs describes it."
        return ApiError(400, sentence, code="invalid_content_type")
    return None


def _invalid(error: RequestValidationError) -> ApiError:
    """The field that pydantic refuses; of several forms of it, the one that fits best. Its messages quote nothing."""
    first = max(error.errors(), key=lambda one: len(one["loc"]))
    if first["type"] == "json_invalid":
        return ApiError(400, "The body is not valid JSON.")
    place = [str(part) for part in first["loc"] if part not in ("body", "str") and "[" not in str(part).rstrip("[]")]
    param = ".".join(place)[:200] or None
    if first["type"] == "extra_forbidden":
        sentence = f"The field {param!r} is not supported, or not with this value: leave it out; /docs lists what is."
        return ApiError(400, sentence, param=param)
    said = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
    return ApiError(400, f"{param or 'body'}: {said}.", param=param)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
