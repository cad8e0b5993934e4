"""The conditioning of each batch: text embeddings that were encoded once, or captions that vary or
whose text encoder is trained, encoded at each step.
"""

from collections import OrderedDict

import torch

from ..base.contracts import BaseModel, Conditioning
from ..base.rng import generator
from ..dataset.caption_augmentation import CaptionAugmentation
from .encoded_dataset import Batch

MOST_REMEMBERED = 64


class Conditioner:
    """Draws a batch's captions and encodes them.

    With `trains_text_encoder` captions are encoded within the step, with gradient.
    """

    def __init__(
        self, augmentation: CaptionAugmentation, *, trains_text_encoder: bool = False
    ) -> None:
        self.augmentation = augmentation
        self.trains_text_encoder = trains_text_encoder
        self._encoded: OrderedDict[tuple[str, torch.dtype], Conditioning] = OrderedDict()

    @property
    def encodes_each_step(self) -> bool:
        """Whether captions are encoded while training, not once before it."""
        return self.trains_text_encoder or self.augmentation.varies

    def draw_captions(self, batch: Batch, *, seed: int, number: int) -> list[str]:
        """Draw a batch's captions as they are this time; it depends on (seed, number) alone."""
        rng = generator(seed, "captions", number)
        return [
            self.augmentation.draw(
                sample.caption, rng, regularisation=sample.role == "regularisation"
            )
            for sample in batch.samples
        ]

    def conditioning(
        self,
        base_model: BaseModel,
        batch: Batch,
        captions: list[str],
        portion: slice,
        dtype: torch.dtype,
    ) -> Conditioning:
        """Return the conditioning of a portion of the batch, with as many tokens as all of it.

        `captions` are the drawn ones of the whole batch. The caller decides about gradients and has
        switched autocast to `dtype`.
        """
        if batch.conditioning is not None and not self.encodes_each_step:
            return batch.conditioning[portion].to(base_model.device)
        if self.trains_text_encoder:
            encoded = self._with_gradient(base_model, captions, portion)
        else:
            encoded = self._frozen(base_model, captions, dtype)[portion]
        return encoded.to(base_model.device).of_sizes(batch.sizes[portion])

    @staticmethod
    def _with_gradient(base_model: BaseModel, captions: list[str], portion: slice) -> Conditioning:
        encoded = base_model.encode_captions(captions[portion])
        if len(encoded) == len(captions):
            return encoded
        with torch.no_grad():  # how long the longest of the batch is
            tokens = base_model.encode_captions(captions).hidden_states.shape[1]
        if encoded.hidden_states.shape[1] == tokens:
            return encoded
        return encoded.filled(base_model.encode_captions([""]), tokens)

    def _frozen(
        self, base_model: BaseModel, captions: list[str], dtype: torch.dtype
    ) -> Conditioning:
        """Encode captions one by one.

        Together, a caption's numbers would depend on which others were remembered, and so would a
        resumed run on where it was interrupted.
        """
        parts = [self._remembered(base_model, caption, dtype) for caption in captions]
        empty = None
        if len({part.hidden_states.shape[1] for part in parts}) > 1:
            empty = self._remembered(base_model, "", dtype)
        return Conditioning.cat(parts, empty)

    def _remembered(self, base_model: BaseModel, caption: str, dtype: torch.dtype) -> Conditioning:
        """Encode a caption, unless it is among the last ones, as empty ones of dropout often
        are.
        """
        key = (caption, dtype)
        if key not in self._encoded:
            with torch.no_grad():
                self._encoded[key] = base_model.encode_captions([caption])
            if len(self._encoded) > MOST_REMEMBERED:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(key)
        return self._encoded[key]
