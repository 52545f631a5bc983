"""Images of a job's pages: figures that were cut out, and pictures of whole pages.

They are written in the transaction of their page's result, so that every image named in a result exists.
They are removed with the result when its lifetime is over.
"""

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from app.document import Box, Picture
from app.errors import NotFound
from app.jobs.store import Store
from app.jobs.tables import images


class Images:
    """Reads images. Raises ``StorageUnavailable`` or ``StorageFull``."""

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
