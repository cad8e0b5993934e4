"""Counts the tokens that CLIP makes of captions, with open_clip's tokenizer, whose vocabulary comes
with the package.
"""

import logging
import threading
from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)
MOST_REMEMBERED = 50_000

Tokenizer = Callable[[str], Sequence[int]]


class TokenCounter:
    """Counts tokens without ever keeping anybody waiting: open_clip takes seconds to import, which
    is done in a thread at the first call.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._tokenizer: Tokenizer | None = None
        self._loading: threading.Thread | None = None
        self._lock = threading.Lock()

    def __call__(self, captions: Sequence[str]) -> list[int] | None:
        """Return each caption's number of tokens, without the start and end tokens; None while the
        tokenizer is being loaded.

        Returns zeros where open_clip cannot be imported.
        """
        with self._lock:
            if self._loading is None:
                self._loading = threading.Thread(
                    target=self._load, name="train-lora-tokenizer", daemon=True
                )
                self._loading.start()
            if self._tokenizer is None:
                return None
            return [self._count(caption, self._tokenizer) for caption in captions]

    def wait(self) -> None:
        """Wait until the tokenizer is loaded."""
        self([])
        if self._loading is not None:
            self._loading.join()

    def _load(self) -> None:
        try:
            from open_clip.tokenizer import SimpleTokenizer

            self._tokenizer = SimpleTokenizer().encode
        except Exception as error:  # a broken package of others' must not take the page with it
            log.warning("captions are not counted in tokens: %s", error)
            self._tokenizer = lambda caption: ()

    def _count(self, caption: str, tokenizer: Tokenizer) -> int:
        if caption not in self._counts:
            if len(self._counts) >= MOST_REMEMBERED:
                self._counts.clear()
            self._counts[caption] = len(tokenizer(caption))
        return self._counts[caption]
