"""Short names for the exact content of captions and pictures, by which the editor notices that
somebody else has changed a file.
"""

import functools
import hashlib
from pathlib import Path

DIGEST_BYTES = 8
MOST_CACHED_DIGESTS = 65_536
BLOCK_BYTES = 1 << 20


def digest_of_bytes(data: bytes) -> str:
    """Return the 2 * DIGEST_BYTES hexadecimal digits that name a content."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def digest_of_file(file: Path) -> str:
    """Return the digest of a file's content, read again only when the file has changed.

    A file that may not be read is named after its time stamp and size. Raises OSError.
    """
    stat = file.stat()
    return _cached_digest(file, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=MOST_CACHED_DIGESTS)
def _cached_digest(file: Path, mtime_ns: int, size: int) -> str:
    content = hashlib.blake2b(digest_size=DIGEST_BYTES)
    try:
        with open(file, "rb") as opened:
            while block := opened.read(BLOCK_BYTES):
                content.update(block)
    except PermissionError:  # such a file can still be moved
        content.update(f"{mtime_ns}/{size}".encode())
    return content.hexdigest()
