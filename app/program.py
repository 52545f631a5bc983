"""The command ``rtprune``: runs ``app.cli``, or says which packages are missing."""

import sys

OUR_PACKAGES = ("app", "rtprune")


def main() -> int:
    """Run the command line. Exit status 2 and one line when its packages are not installed."""
    try:
        from app.cli import main as run  # noqa: PLC0415 - its imports are what may be missing
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in OUR_PACKAGES:
            raise
        sys.stderr.write(
            f"rtprune: {missing} is not installed; the service needs: pip install 'rtprune[serve,worker]'\n"
        )
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
