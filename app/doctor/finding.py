"""One fact about a machine."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact. ``is_fatal``: the service does not work like this; ``is_bad``: it works, but worse.

    ``mend``: what to do about it.
    """

    name: str
    text: str
    is_bad: bool = False
    is_fatal: bool = False
    mend: str = ""

    def __str__(self) -> str:
        mark = "fail" if self.is_fatal else "warn" if self.is_bad else "ok"
        advice = f" [mend: {self.mend}]" if self.mend and (self.is_bad or self.is_fatal) else ""
        return f"{mark:<5}{self.name}: {self.text}{advice}"
