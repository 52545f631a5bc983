"""Serve images of a job: ``/v1/jobs/{id}/images`` for figures, and pictures of whole pages."""

from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from app.document import Picture
from app.errors import NotFound
from app.http.access import caller_of, needs
from app.http.openapi import problems
from app.http.service import service_of
from app.jobs.database import promptly
from app.output.cutting import JPEG, PNG, page_image_name
from app.settings import Settings

router = APIRouter(tags=["jobs"])

MAX_NAME_CHARS = 64
MAX_PAGE = 10_000
HEADERS = {
    # an image never changes; it is removed with its job
    "Cache-Control": "private, max-age=3600, immutable",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}
BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}, "example": "..."}


@router.get(
    "/v1/jobs/{job_id}/images/{name}",
    operation_id="get_image",
    summary="A figure of a job",
    dependencies=[needs("read")],
    response_class=Response,
    responses={200: {"description": "The image.", "content": {PNG: BINARY, JPEG: BINARY}}, **problems()},
)
async def image(
    request: Request, job_id: str, name: Annotated[str, Path(max_length=MAX_NAME_CHARS)]
) -> Response:
    """Return an image by the name it has in the result: ``images/p3-1.png`` is the first figure of page 3."""
    return _answer(await _picture(request, job_id, name))


@router.get(
    "/v1/jobs/{job_id}/pages/{number}/image",
    operation_id="get_page",
    summary="The picture of a page",
    dependencies=[needs("read")],
    response_class=Response,
    responses={200: {"description": "The page, as it was read.", "content": {JPEG: BINARY}}, **problems()},
)
async def page_image(
    request: Request, job_id: str, number: Annotated[int, Path(ge=1, le=MAX_PAGE)]
) -> Response:
    """Return a page as it was read, with at most 1600 pixels on its longer side. Pages count from 1."""
    try:
        return _answer(await _picture(request, job_id, page_image_name(number - 1)))
    except NotFound as error:
        raise NotFound(_why_not(error, service_of(request).settings)) from error


async def _picture(request: Request, job_id: str, name: str) -> Picture:
    jobs = service_of(request).jobs
    job = await jobs.job(job_id, caller_of(request).sees)
    if "\0" in name:  # PostgreSQL refuses this character in text
        raise NotFound("the job has no such image")
    return await promptly(jobs.images.picture, job.id, name)


def _why_not(error: NotFound, settings: Settings) -> str:
    if "image" not in str(error) or settings.keep_page_images:
        return str(error)
    return "pictures of pages are not kept here (RTPRUNE_KEEP_PAGE_IMAGES)"


def _answer(picture: Picture) -> Response:
    return Response(picture.data, headers=HEADERS, media_type=picture.media_type)
