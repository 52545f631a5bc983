"""Tell whether a worker on this machine has loaded its model: ``python -m app.jobs.healthcheck``."""

import socket
import sys

from app.errors import ParseError
from app.jobs.database import open_engine
from app.jobs.leases import Leases
from app.jobs.store import Store
from app.settings import Settings


def main() -> int:
    """Return the exit status: 0 if a worker is ready, else 1."""
    store = Store(open_engine(Settings()))
    try:
        alive = Leases(store).alive()
    except ParseError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        store.close()
    mine = [worker for worker in alive if worker.host == socket.gethostname()]
    if any(worker.ready for worker in mine):
        return 0
    print(mine[0].detail if mine else "no worker of this machine holds a lease", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
