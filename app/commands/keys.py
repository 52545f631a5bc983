"""``rtprune keys add|list|revoke``: API keys of the service with this machine's settings."""

import argparse
import sys
from datetime import UTC, datetime

from app.commands.words import DONE, NOT_ALL_READ, WRONG_USE, Parsers, given
from app.errors import StorageFull, StorageUnavailable
from app.jobs.keys import SCOPES, Keys, open_keys
from app.processes import keep_private
from app.settings import Settings
from app.telemetry import log_to_stderr


def add_to(commands: Parsers) -> None:
    parser = commands.add_parser(
        "keys", help="make, list and revoke API keys; once there is one, all need one"
    )
    actions = parser.add_subparsers(dest="action", required=True)
    add = actions.add_parser("add", help="make a key and print it, this once")
    add.add_argument("name", help="what it is called in lists; a name is used once")
    add.add_argument(
        "--scope", choices=SCOPES, default="submit", help="read < submit < admin (default: submit)"
    )
    add.add_argument("--owner", help="whose jobs it makes and sees (default: its name); keys may share one")
    add.add_argument(
        "--max-jobs", type=int, help="most unfinished jobs (default: RTPRUNE_MAX_JOBS_PER_CLIENT)"
    )
    add.add_argument("--pages-per-minute", type=int, help="most pages accepted a minute (default: no limit)")
    actions.add_parser("list", help="show names, scopes and limits")
    actions.add_parser("revoke", help="let a key open nothing any more").add_argument("name")


def run(asked: argparse.Namespace, settings: Settings) -> int:
    settings = settings.model_copy(update={"log_level": "WARNING"})
    keep_private()
    log_to_stderr(settings)
    try:
        with open_keys(settings) as keys:
            return _act(asked, keys)
    except ValueError as error:
        print(f"rtprune: {error}", file=sys.stderr)
        return WRONG_USE
    except (StorageUnavailable, StorageFull) as error:
        print(f"rtprune: {error}", file=sys.stderr)
        return NOT_ALL_READ


def _act(asked: argparse.Namespace, keys: Keys) -> int:
    if asked.action == "add":
        print(keys.add(**given(asked, "name", "scope", "owner", "max_jobs", "pages_per_minute")))
        print("rtprune: keep it; only its hash is stored", file=sys.stderr)
        return DONE
    if asked.action == "revoke":
        if not keys.revoke(asked.name):
            raise ValueError(f"there is no key called {asked.name} that is valid")
        return DONE
    print("name\towner\tscope\tmax jobs\tpages a minute\tmade\trevoked")
    for key in keys.all():
        limits = (key.max_jobs or "default", key.pages_per_minute or "any")
        times = (_day(key.created_at), _day(key.revoked_at) if key.revoked_at else "")
        print(key.name, key.owner, key.scope, *limits, *times, sep="\t")
    return DONE


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
