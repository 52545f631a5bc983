"""Define our tables, in one database with those of DBOS. Times: seconds since 1970, database clock."""

import time

import sqlalchemy as sa

metadata = sa.MetaData()

jobs = sa.Table(
    "rtprune_jobs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("client", sa.Text, nullable=False),
    sa.Column("dedupe", sa.Text, unique=True),
    sa.Column("request_hash", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("options", sa.Text, nullable=False),
    sa.Column("format", sa.Text, nullable=False),
    sa.Column("blob", sa.Text, nullable=False),
    sa.Column("pages", sa.Text, nullable=False),
    sa.Column("batch_pages", sa.Integer, nullable=False),
    sa.Column("num_pages", sa.Integer, nullable=False),
    sa.Column("num_done", sa.Integer, nullable=False, default=0),
    sa.Column("num_failed", sa.Integer, nullable=False, default=0),
    sa.Column("num_incomplete", sa.Integer, nullable=False, default=0, server_default="0"),
    sa.Column("visual_tokens", sa.BigInteger, nullable=False, default=0, server_default="0"),
    sa.Column("kept_tokens", sa.BigInteger, nullable=False, default=0, server_default="0"),
    sa.Column("output_tokens", sa.BigInteger, nullable=False, default=0, server_default="0"),
    sa.Column("num_retries", sa.Integer, nullable=False, default=0),
    sa.Column("num_requeues", sa.Integer, nullable=False, default=0),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("webhook", sa.Text),
    sa.Column("webhook_status", sa.Text),
    sa.Column("webhook_attempts", sa.Integer, nullable=False, default=0),
    sa.Column("model", sa.Text, nullable=False, default=""),
    sa.Column("failure", sa.Text),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("touched_at", sa.Double, nullable=False),
    sa.Column("finished_at", sa.Double),
    sa.Column("trace", sa.Text, nullable=False, default="", server_default=""),
    sa.Index("rtprune_jobs_by_status", "status", "created_at"),
    sa.Index("rtprune_jobs_by_client", "client", "created_at"),
    sa.Index("rtprune_jobs_by_end", "finished_at"),
)

pages = sa.Table(
    "rtprune_pages",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("page", sa.Integer, primary_key=True),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("result", sa.Text, nullable=False),
    sa.Column("worker", sa.Text, nullable=False),
    sa.Column("done_at", sa.Double, nullable=False),
    sa.Index("rtprune_pages_by_seq", "job_id", "seq", unique=True),
    sa.Index("rtprune_pages_by_time", "done_at"),
)

# figures and pictures of pages, written with the page's result, so that every image it names exists
images = sa.Table(
    "rtprune_images",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("page", sa.Integer, nullable=False),
    sa.Column("media_type", sa.Text, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("bbox", sa.Text),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

# pages in a model now, or when their worker died; worker: who has the page, NULL after a death
attempts = sa.Table(
    "rtprune_tries",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("page", sa.Integer, primary_key=True),
    sa.Column("worker", sa.Text),
    sa.Column("together", sa.Integer, nullable=False, default=0),
    sa.Column("strikes", sa.Integer, nullable=False, default=0),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
)

workers = sa.Table(
    "rtprune_workers",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("ready", sa.Boolean, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("modes", sa.Text, nullable=False, default="[]", server_default="[]"),
    sa.Column("phase", sa.Text, nullable=False, default="starting", server_default="starting"),
    sa.Column("sandbox", sa.Text, nullable=False, default="null", server_default="null"),
    sa.Column("fixates", sa.Boolean, nullable=False, default=False, server_default=sa.false()),
    sa.Column("reads_together", sa.Boolean, nullable=False, default=False, server_default=sa.false()),
    sa.Column("expires_at", sa.Double, nullable=False),
)


# uploaded files that requests of their client name later
files = sa.Table(
    "rtprune_files",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("client", sa.Text, nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("media_type", sa.Text, nullable=False),
    sa.Column("num_bytes", sa.BigInteger, nullable=False),
    sa.Column("blob", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Index("rtprune_files_by_client", "client", "created_at"),
    sa.Index("rtprune_files_by_time", "created_at"),
)

# API keys. A revoked key keeps its row, so that the service does not open to all when the last key goes.
keys = sa.Table(
    "rtprune_keys",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("hash", sa.Text, nullable=False, unique=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("scope", sa.Text, nullable=False),
    sa.Column("max_jobs", sa.Integer),
    sa.Column("pages_per_minute", sa.Integer),
    sa.Column("busy_until", sa.Double, nullable=False, default=0.0),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("revoked_at", sa.Double),
)

ADDED_COLUMNS = (
    (jobs, jobs.c.num_incomplete),
    (jobs, jobs.c.visual_tokens),
    (jobs, jobs.c.kept_tokens),
    (jobs, jobs.c.output_tokens),
    (jobs, jobs.c.trace),
    (workers, workers.c.modes),
    (workers, workers.c.phase),
    (workers, workers.c.sandbox),
    (workers, workers.c.fixates),
    (workers, workers.c.reads_together),
)
"""Columns added since the first release of their tables. Each has a default for existing rows."""


def create_or_upgrade(connection: sa.Connection) -> None:
    """Create missing tables, and add columns that an earlier release did not have."""
    metadata.create_all(connection)
    for table, added in ADDED_COLUMNS:
        there = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
        if added.name not in there:
            spec = sa.schema.CreateColumn(added).compile(dialect=connection.dialect)
            connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {spec}"))


def now(connection: sa.Connection) -> float:
    """Return the seconds since 1970 by the database's clock: machines disagree, but leases must not.

    SQLite's clock is this machine's.
    """
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(connection.execute(sa.select(sa.extract("epoch", sa.func.clock_timestamp()))).scalar_one())
