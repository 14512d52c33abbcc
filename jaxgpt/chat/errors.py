"""Errors of the server, in OpenAI's form."""

from __future__ import annotations

KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error.

    Args:
      status: of HTTP.
      message: one sentence for a person.
      param: the field that is wrong, or None.
      code: a word for programs, or None.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict:
        """The JSON that is sent.

        >>> ApiError(404, "no such model", param="model").body()["error"]["type"]
        'not_found_error'
        """
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}
