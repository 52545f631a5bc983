"""Images of a job's pages: figures that were cut out, and pictures of whole pages.

They are written in the transaction of their page's result, so that every image named in a result exists.
They are removed with the result when its lifetime is over.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from app.document import Box, Picture
from app.errors import NotFound
from app.jobs.store import Store
from app.jobs.tables import images

_DESCRIBED = (
    images.c.name,
    images.c.page,
    images.c.media_type,
    images.c.width,
    images.c.height,
    images.c.bbox,
)


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image without its bytes. ``page``: 0-based; ``bbox``: ``None`` for a picture of the whole page."""

    name: str
    page: int
    media_type: str
    width: int
    height: int
    bbox: Box | None


class Images:
    """Reads images. Each method is one query and raises ``StorageUnavailable`` or ``StorageFull``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def picture(self, job_id: str, name: str) -> Picture:
        """Return an image with its bytes. Raise ``NotFound``."""
        query = sa.select(images).where(images.c.job_id == job_id, images.c.name == name)
        with self._store.reading() as c:
            row = c.execute(query).first()
        if row is None:
            raise NotFound("the job has no such image")
        return Picture(row.name, row.media_type, row.data, row.width, row.height, _box(row.bbox))

    def described(self, job_id: str, page: int | None = None) -> list[StoredImage]:
        """List the images of a job, or of one of its pages, in page order, without their bytes."""
        query = sa.select(*_DESCRIBED).where(images.c.job_id == job_id)
        if page is not None:
            query = query.where(images.c.page == page)
        with self._store.reading() as c:
            rows = c.execute(query).all()
        found = [
            StoredImage(row.name, row.page, row.media_type, row.width, row.height, _box(row.bbox))
            for row in rows
        ]
        return sorted(found, key=lambda image: (image.page, len(image.name), image.name))


def image_rows(job_id: str, page: int, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """Return the table rows for a page's images."""
    return [
        {
            "job_id": job_id,
            "name": picture.name,
            "page": page,
            "media_type": picture.media_type,
            "width": picture.width,
            "height": picture.height,
            "bbox": None if picture.bbox is None else json.dumps(picture.bbox),
            "data": picture.data,
        }
        for picture in pictures
    ]


def _box(text: str | None) -> Box | None:
    if text is None:
        return None
    x1, y1, x2, y2 = json.loads(text)
    return x1, y1, x2, y2
