"""Making a saved LoRA known to the host, so that prompts find it."""

import logging
from pathlib import Path

from .context import RunContext

log = logging.getLogger(__name__)


def register(context: RunContext, path: Path) -> None:
    """Make a LoRA known; where the host fails, that is a warning: the LoRA is saved."""
    reporter = context.reporter
    try:
        context.host.register(path)
    except Exception as error:  # an entry into the host's own code
        log.exception("registering failed")
        reporter.warn(
            f"The LoRA is saved, but could not be made known ({error}). Press the refresh"
            " button of the Lora cards.",
            about="registering",
        )
    else:
        reporter.withdraw_warning("registering")
