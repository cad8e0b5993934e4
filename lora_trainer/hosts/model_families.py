"""What all hosts know of model families: the pictures they were trained on, and their variants."""

import re

SIZES_PX = {"sd1": 512, "sd2": 512, "sdxl": 1024, "sd3": 1024}
SD2_V_SIZE_PX = 768
INPAINTING = "inpainting"
SSD_1B = "ssd-1b"
INPAINTING_CHANNELS = 9  # latents, a mask, and the latents of what the mask leaves


def size_px_in_metadata(resolution: str) -> int | None:
    """Read a file's `modelspec.resolution`, such as "1024x1024": its first side, a multiple of 8;
    None where it says nothing plausible.
    """
    found = re.match(r"\s*(\d+)", resolution)
    if found is None or not 64 <= int(found[1]) <= 2048:
        return None
    return int(found[1]) // 8 * 8
