"""A program of its own that downloads one file from the Hugging Face Hub with huggingface_hub, 0.x
or newer; `hub_download` starts it, watches the file grow, and may kill it at any time.

    python hub_process.py OWNER/REPOSITORY FILE FOLDER

It writes JSON objects, one a line: `size_bytes` and `etag` of the file, then `path`; or `error`
with the HTTP `status`, if there is one. It ends when its stdin is closed: when its parent does.
"""

import glob
import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TextIO
from urllib.parse import urlparse

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata


def main(repository: str, name: str, folder: str, output: TextIO) -> None:
    def write(**message: object) -> None:
        print(json.dumps(message), file=output, flush=True)

    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(repository, name)
        metadata = get_hf_file_metadata(url)
        write(size_bytes=metadata.size, etag=metadata.etag)
        write(path=str(_download(url, metadata, name, Path(folder))))
    except Exception as error:  # whatever it is, the parent tells the user
        response = getattr(error, "response", None)
        write(
            error=_first_reason(error),
            status=getattr(response, "status_code", None),
            phrase=getattr(response, "reason_phrase", None) or getattr(response, "reason", ""),
        )


def _download(url: str, metadata: "HfFileMetadata", name: str, folder: Path) -> Path:
    """Download a file, going on where an earlier download of the same etag broke off.

    `hf_hub_download` itself does not do that any more in its newest versions: it begins anew.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers()
    if urlparse(metadata.location).netloc != urlparse(url).netloc:
        headers.pop("authorization", None)  # the user's token is for the hub only
    etag = re.sub(r"\W", "", metadata.etag or "")
    path = folder / f"{name}.{etag}.incomplete"
    for other in folder.glob(f"{glob.escape(name)}.*.incomplete"):
        too_long = metadata.size is not None and other.stat().st_size > metadata.size
        if other != path or too_long:
            other.unlink()
    path.touch()
    with open(path, "r+b") as file:
        have_bytes = file.seek(0, os.SEEK_END)
        http_get(
            metadata.location,
            file,
            resume_size=have_bytes,
            headers=headers,
            expected_size=metadata.size,
            displayed_filename=name,
        )
        file.flush()
        os.fsync(file.fileno())
    return path


def _first_reason(error: BaseException) -> str:
    """Return what came first of a chain of errors, such as "Connection refused"."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its modules are not to be found by their bare names
    protocol, sys.stdout = sys.stdout, sys.stderr  # what libraries print is not read
    threading.Thread(target=_end_with_parent, daemon=True).start()
    repository, name, folder = sys.argv[1:4]
    main(repository, name, folder, protocol)
    protocol.flush()
    os._exit(0)
