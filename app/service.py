"""What the routes are served by: one object, made by ``create_app``, at ``request.app.state.service``."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.requests import Request

from app.errors import NotReady, Overloaded
from app.parser import Parser
from app.settings import Settings
from app.spool import Spool
from app.telemetry import Metrics


@dataclass(slots=True)
class Service:
    settings: Settings
    metrics: Metrics
    parser: Parser
    spool: Spool
    _num_documents: int = field(default=0, init=False)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place for one document, before its first byte. Raise ``Overloaded`` or ``NotReady`` at once."""
        readiness = self.parser.readiness
        if not readiness.ready:
            raise NotReady(readiness.detail)
        if self._num_documents >= self.settings.max_documents:
            raise Overloaded(f"{self._num_documents} documents are being read, which is the limit")
        self._num_documents += 1
        self.metrics.documents_in_flight.set(self._num_documents)
        try:
            yield
        finally:
            self._num_documents -= 1
            self.metrics.documents_in_flight.set(self._num_documents)


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
