"""Say what this machine has of what the service needs."""

import os

from app.doctor.finding import Finding
from app.doctor.machine import confinement, examine_machine
from app.doctor.model import examine_model
from app.settings import Settings, misspelt_variables

__all__ = ["Finding", "confinement", "examine"]


async def examine(settings: Settings) -> list[Finding]:
    """Look at programs, fonts, memory, disk and limits, at what confines decoders, and at the model."""
    found = [
        Finding("settings", said, is_bad=True, mend="correct its name, or unset it")
        for said in misspelt_variables(os.environ)
    ]
    return [*found, *await examine_machine(settings), *examine_model(settings)]
