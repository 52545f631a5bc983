"""Charge pages to a key's quota per minute."""

from dataclasses import dataclass

import sqlalchemy as sa

from app.errors import RateLimited
from app.jobs.tables import keys, now

MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class Quota:
    """The pages per minute that one API key may read."""

    key_name: str
    pages_per_minute: int

    def spend(self, c: sa.Connection, num_pages: int) -> None:
        """Charge pages to the quota within the transaction that accepts them. Raise ``RateLimited``.

        ``busy_until`` is the time when all pages so far are paid for at the key's rate. It may be a minute
        ahead. A document with more pages than a minute allows is accepted when nothing is owed, and then
        paid for.
        """
        busy_until = sa.select(keys.c.busy_until).where(keys.c.name == self.key_name).with_for_update()
        at = now(c)
        owed_s = max(0.0, float(c.execute(busy_until).scalar_one()) - at)
        cost_s = num_pages * MINUTE_S / self.pages_per_minute
        over_s = owed_s + cost_s - MINUTE_S
        if over_s > 0 and owed_s > 0:
            wait_s = int(min(over_s, owed_s)) + 1
            raise RateLimited(f"this key may have {self.pages_per_minute} pages a minute", wait_s)
        paid = sa.update(keys).where(keys.c.name == self.key_name)
        c.execute(paid.values(busy_until=at + owed_s + cost_s))
