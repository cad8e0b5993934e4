"""What the UNet is told of each batch: text embeddings that were encoded once, or captions that
vary or whose encoder learns, encoded at each step.
"""

from collections import OrderedDict

import torch

from ..base.contracts import BaseModel, Conditioning
from ..base.rng import generator
from ..dataset.caption_augmentation import CaptionAugmentation
from .encoded_dataset import Batch

MOST_REMEMBERED = 64


class Texts:
    """`trained`: the text encoders learn, so captions are encoded within the step, with
    gradient.
    """

    def __init__(self, variation: CaptionAugmentation, *, trained: bool = False) -> None:
        self.variation, self.trained = variation, trained
        self._encoded: OrderedDict[tuple[str, torch.dtype], Conditioning] = OrderedDict()

    @property
    def change(self) -> bool:
        """Whether captions are encoded while training."""
        return self.trained or self.variation.varies

    def draw(self, batch: Batch, *, seed: int, number: int) -> list[str]:
        """Return a batch's captions as they are this time; the draws depend on (seed, number)
        alone.
        """
        draws = generator(seed, "captions", number)
        return [
            self.variation.draw(caption, draws, regularisation=regularisation)
            for caption, regularisation in zip(batch.captions, batch.regularisation, strict=True)
        ]

    def conditioning(
        self,
        base_model: BaseModel,
        batch: Batch,
        captions: list[str],
        portion: slice,
        dtype: torch.dtype,
    ) -> Conditioning:
        """Return what the UNet is told of a portion of the batch, as long as for the whole of it,
        in the caller's gradient mode and autocast to `dtype`.
        """
        if batch.conditioning is not None and not self.change:
            return batch.conditioning[portion].to(base_model.device)
        told = (
            self._learning(base_model, captions, portion)
            if self.trained
            else self._frozen(base_model, captions, dtype)[portion]
        )
        return told.to(base_model.device).of_sizes(batch.sizes[portion])

    @staticmethod
    def _learning(base_model: BaseModel, captions: list[str], portion: slice) -> Conditioning:
        told = base_model.encode_captions(captions[portion])
        if len(told) == len(captions):
            return told
        with torch.no_grad():  # how long the longest of the batch is
            tokens = base_model.encode_captions(captions).hidden_states.shape[1]
        return (
            told
            if told.hidden_states.shape[1] == tokens
            else told.filled(base_model.encode_captions([""]), tokens)
        )

    def _frozen(
        self, base_model: BaseModel, captions: list[str], dtype: torch.dtype
    ) -> Conditioning:
        """Encode captions one by one: together, a caption's numbers would depend on which others
        were remembered, and a resumed run on the break.
        """
        parts = [self._remembered(base_model, caption, dtype) for caption in captions]
        lengths = {part.hidden_states.shape[1] for part in parts}
        return Conditioning.cat(
            parts, self._remembered(base_model, "", dtype) if len(lengths) > 1 else None
        )

    def _remembered(self, base_model: BaseModel, caption: str, dtype: torch.dtype) -> Conditioning:
        """Encode a caption unless it came by lately; an empty one, which dropout gives, often
        did.
        """
        key = (caption, dtype)
        if key not in self._encoded:
            with torch.no_grad():
                self._encoded[key] = base_model.encode_captions([caption])
            if len(self._encoded) > MOST_REMEMBERED:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(key)
        return self._encoded[key]
