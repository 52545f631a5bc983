"""Every error a client can meet. ``code``, HTTP ``status`` and ``retryable`` are data on the class.

ParseError
├── BadOption            400  an option is malformed, out of range or unknown to this checkpoint
├── PageFailed           500  the model failed on one page; the other pages went on
│   └── PageTooLong      422  the page and its prompt do not fit the memory of one page
└── Overloaded           503  no capacity now; try again
"""

from typing import ClassVar


class ParseError(Exception):
    """Base of everything a client may be told. ``str(error)`` is safe to show: no paths, no stack traces."""

    code: ClassVar[str] = "parse_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False


class BadOption(ParseError):
    code = "bad_option"
    status = 400


class PageFailed(ParseError):
    code = "page_failed"
    status = 500


class PageTooLong(PageFailed):
    code = "page_too_long"
    status = 422


class Overloaded(ParseError):
    code = "overloaded"
    status = 503
    retryable = True
