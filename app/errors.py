"""Every error a client can meet. ``code``, HTTP ``status`` and ``retryable`` are data on the class.

ParseError
├── BadRequest              400  the body is not what its content type says
├── BadOption               400  an option is malformed, out of range or unknown to this checkpoint
├── UrlRefused              400  the address of the document or webhook may not be reached from here
├── Unauthorized            401  the service asks for an API key, and this is none
├── Forbidden               403  the API key's scope does not reach that far, or a web page elsewhere asks
├── NotFound                404  no such address, or a job of somebody else
├── MethodNotAllowed        405  this address has other verbs
├── NotAcceptable           406  no answer in a type that the client accepts
├── UploadTimeout           408  the upload stalled
├── IdempotencyConflict     409  the Idempotency-Key was used for another request
├── NotFinished             409  the result was asked for before the job ended
├── JobCancelled            409  the job was cancelled and has no result
├── Expired                 410  the job's result is over its lifetime
├── TooLarge                413  more bytes than the limit
├── TooManyPages            413  more pages than the limit
├── TooManyPixels           413  a page no sensible resolution can bring under the limit
├── UnsupportedMediaType    415  the body is neither multipart/form-data nor application/json
├── UnsupportedFormat       415  the file is of a kind that is not read
├── HostRefused             421  the service is not known by the name it was asked by
├── InvalidRequest          422  the request failed a check of the framework
├── EmptyFile               422  the file has no bytes
├── UnreadableFile          422  the file is damaged beyond reading
├── EncryptedPdf            422  the PDF needs a password, or a key that no password gives
├── PageNotFound            422  a page was asked for that the document does not have
├── UnreadablePage          422  one page is damaged; the other pages went on
├── PageTooLong             422  the page and its prompt do not fit the memory of one page
├── RasterizeTimeout        422  counting the pages, or turning one into pixels, took too long
├── UrlFailed               422  the document could not be fetched from its address
├── QueueFull               429  more pages wait than the limit
├── TooManyJobs             429  the client has too many unfinished jobs
├── TooManyFiles             429  the client keeps as many files as it may
├── RateLimited             429  the API key has used up its pages of this minute
├── PageFailed              500  the model failed on one page; the other pages went on
├── DocumentFailed          500  no page could be read, for different reasons
├── InternalError           500  a defect of the service
├── FormatUnavailable       501  what makes answers of this format is not installed or not kept here
├── Overloaded              503  no capacity now; try again
├── NotReady                503  the model is not loaded, or is being loaded again
├── StorageUnavailable      503  the database or blob store does not answer
├── StorageFull             503  the disk where jobs or documents are kept has no room
├── WorkerLost              503  the process that read the page died, twice
├── PageDeadline            504  reading one page took too long
└── DocumentDeadline        504  reading the document took too long
"""

from collections.abc import Iterator
from typing import ClassVar


class ParseError(Exception):
    """Base of all errors that clients see. ``str(error)`` is safe to show: no paths, no stack traces."""

    code: ClassVar[str] = "parse_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    title: ClassVar[str] = "The document could not be parsed"

    def __init__(self, detail: str = "", retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class BadRequest(ParseError):
    code, status, title = "bad_request", 400, "The request body is malformed"


NO_FIXATION = (
    "fixation is not available: it needs a checkpoint with a fixation.json, read by workers without a GPU"
)


ONE_PAGE_A_PROMPT = "pages_per_prompt is not available: the checkpoint reads one page a prompt"


class BadOption(ParseError):
    code, status, title = "bad_option", 400, "An option cannot be used"


class UrlRefused(ParseError):
    code, status, title = "url_refused", 400, "This address may not be reached"


class Unauthorized(ParseError):
    code, status, title = "unauthorized", 401, "An API key is needed"


class Forbidden(ParseError):
    code, status, title = "forbidden", 403, "This may not be asked for here"


class NotFound(ParseError):
    code, status, title = "not_found", 404, "There is nothing at this address"


class MethodNotAllowed(ParseError):
    code, status, title = "method_not_allowed", 405, "This address does not answer this method"


class NotAcceptable(ParseError):
    code, status, title = "not_acceptable", 406, "No answer in an accepted media type"


class UploadTimeout(ParseError):
    code, status, retryable, title = "upload_timeout", 408, True, "The upload stalled"


class IdempotencyConflict(ParseError):
    code, status, title = "idempotency_conflict", 409, "The Idempotency-Key was used for another request"


class NotFinished(ParseError):
    code, status, retryable, title = "not_finished", 409, True, "The job has not ended yet"


class JobCancelled(ParseError):
    code, status, title = "job_cancelled", 409, "The job was cancelled"


class Expired(ParseError):
    code, status, title = "expired", 410, "The result is over its lifetime"


class TooLarge(ParseError):
    code, status, title = "too_large", 413, "The upload is over the size limit"


class TooManyPages(ParseError):
    code, status, title = "too_many_pages", 413, "More pages than the limit"


class TooManyPixels(ParseError):
    code, status, title = "too_many_pixels", 413, "A page has more pixels than the limit"


class UnsupportedMediaType(ParseError):
    code, status, title = "unsupported_media_type", 415, "The request body has the wrong content type"


class UnsupportedFormat(ParseError):
    code, status, title = "unsupported_format", 415, "Files of this kind are not read"


class HostRefused(ParseError):
    code, status, title = "host_refused", 421, "The service is not known by this name"


class InvalidRequest(ParseError):
    code, status, title = "invalid_request", 422, "The request failed validation"


class EmptyFile(ParseError):
    code, status, title = "empty_file", 422, "The file is empty"


class UnreadableFile(ParseError):
    code, status, title = "unreadable_file", 422, "The file cannot be read"


class EncryptedPdf(ParseError):
    code, status, title = "encrypted_pdf", 422, "The PDF is encrypted"


class PageNotFound(ParseError):
    code, status, title = "page_not_found", 422, "The document has no such page"


class UnreadablePage(ParseError):
    code, status, title = "unreadable_page", 422, "The page cannot be read"


class PageTooLong(ParseError):
    code, status, title = "page_too_long", 422, "The page does not fit the model's memory"


class RasterizeTimeout(ParseError):
    code, status, title = "rasterize_timeout", 422, "The file takes too long to render"


class UrlFailed(ParseError):
    code, status, retryable, title = "url_failed", 422, True, "The document could not be fetched"


class QueueFull(ParseError):
    code, status, retryable, title = "queue_full", 429, True, "Too many pages are waiting"


class TooManyJobs(ParseError):
    code, status, retryable, title = "too_many_jobs", 429, True, "The client has too many unfinished jobs"


class TooManyFiles(ParseError):
    code, status, title = "too_many_files", 429, "The client keeps too many files"


class RateLimited(ParseError):
    code, status, retryable, title = "rate_limited", 429, True, "The API key's pages a minute are used up"


class PageFailed(ParseError):
    code, status, title = "page_failed", 500, "The model failed on the page"


class DocumentFailed(ParseError):
    code, status, title = "document_failed", 500, "No page of the document could be read"


class InternalError(ParseError):
    code, status, title = "internal_error", 500, "The service failed"


class FormatUnavailable(ParseError):
    code, status, title = "format_unavailable", 501, "Answers of this format are not made here"


class Overloaded(ParseError):
    code, status, retryable, title = "overloaded", 503, True, "No capacity now"


class NotReady(ParseError):
    code, status, retryable, title = "not_ready", 503, True, "The model is not loaded"

    def __init__(self, detail: str = "", retry_after_s: int | None = None, phase: str | None = None) -> None:
        super().__init__(detail, retry_after_s)
        self.phase = phase


class StorageUnavailable(ParseError):
    code, status, retryable, title = "storage_unavailable", 503, True, "The job store does not answer"


class StorageFull(ParseError):
    code, status, retryable, title = "storage_full", 503, True, "The job store has no room"


class WorkerLost(ParseError):
    code, status, retryable, title = "worker_lost", 503, True, "The reading process died on the page"


class PageDeadline(ParseError):
    code, status, retryable, title = "page_deadline", 504, True, "Reading the page took too long"


class DocumentDeadline(ParseError):
    code, status, retryable, title = "document_deadline", 504, True, "Reading the document took too long"


def all_errors() -> Iterator[type[ParseError]]:
    """Yield every error class that a client can meet, in the order of the tree above."""
    yield from ParseError.__subclasses__()


def error_named(code: str) -> type[ParseError]:
    """Return the class of a ``code`` from another process; ``InternalError`` for an unknown one."""
    return next((error for error in all_errors() if error.code == code), InternalError)
