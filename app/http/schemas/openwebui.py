"""The wire shapes of Open WebUI's external document loader."""

from pydantic import BaseModel, Field


class LoaderMetadata(BaseModel):
    """What Open WebUI keeps with a document."""

    source: str = Field(description="The name that the client gave.")
    num_pages: int
    job_id: str
    model: str
    status: str = Field(description="succeeded, or partial: not all of it was read.")


class LoadedShape(BaseModel):
    """A document as one text."""

    page_content: str
    metadata: LoaderMetadata
