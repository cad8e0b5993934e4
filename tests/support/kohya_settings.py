"""Settings of sd-scripts, translated without a file."""

from lora_trainer.interop.conversion import (
    Conversion,
    valid_settings,
)
from lora_trainer.interop.kohya import translate


def taken(values, complete=False):
    conversion = Conversion(values)
    translate(conversion, complete=complete)
    return valid_settings(conversion), {item.key: item for item in conversion.left_out}, conversion


def settings(values, complete=False):
    return taken(values, complete)[0]
