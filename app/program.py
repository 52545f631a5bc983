"""Run the command ``rtprune`` in ``app.cli``, or say which packages are missing."""

import sys

OUR_PACKAGES = ("app", "rtprune")
EVAL = "eval"


def main() -> int:
    """Run the command line. Return 2 after one line on standard error when its packages are not installed."""
    is_eval = sys.argv[1:2] == [EVAL]
    try:
        if is_eval:  # has its own extra, and needs no package of the service
            from app.evaluation.program import main as evaluate  # noqa: PLC0415 - as below

            return evaluate(sys.argv[2:])
        from app.cli import main as run  # noqa: PLC0415 - its imports are what may be missing
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in OUR_PACKAGES:
            raise
        needs = "eval needs: pip install 'rtprune[eval]'"
        if not is_eval:
            needs = "the service needs: pip install 'rtprune[serve,worker]'"
        sys.stderr.write(f"rtprune: {missing} is not installed; {needs}\n")
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
