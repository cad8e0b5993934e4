"""What the UNet is told of each batch: text embeddings that were encoded once, or captions that vary or whose encoder learns, encoded at each step."""
from collections import OrderedDict

import torch

from .cache import Batch
from .contracts import BaseModel, Conditioning
from .dataset import generator
from .variation import Variation

MOST_REMEMBERED = 64


class Texts:
    """`trained`: the text encoders learn, so captions are encoded within the step, with gradient."""

    def __init__(self, variation: Variation, *, trained: bool = False) -> None:
        self.variation, self.trained = variation, trained
        self._encoded: OrderedDict[str, Conditioning] = OrderedDict()

    @property
    def change(self) -> bool:
        """Whether captions are encoded while training."""
        return self.trained or self.variation.varies

    def draw(self, batch: Batch, *, seed: int, number: int) -> list[str]:
        """Return a batch's captions as they are this time; the draws depend on (seed, number) alone."""
        draws = generator(seed, "captions", number)
        return [self.variation.draw(caption, draws, regularisation=regularisation) for caption, regularisation in zip(batch.captions, batch.regularisation)]

    def conditioning(self, base_model: BaseModel, batch: Batch, captions: list[str], portion: slice) -> Conditioning:
        """Return what the UNet is told of a portion of the batch, in the caller's gradient mode."""
        if batch.conditioning is not None and not self.change:
            return batch.conditioning[portion].to(base_model.device)
        told = base_model.encode_captions(captions[portion]) if self.trained else self._frozen(base_model, captions[portion])
        return told.to(base_model.device).of_sizes(batch.sizes[portion])

    def _frozen(self, base_model: BaseModel, captions: list[str]) -> Conditioning:
        parts = [self._remembered(base_model, caption) for caption in captions]
        lengths = {part.hidden_states.shape[1] for part in parts}
        return Conditioning.cat(parts, self._remembered(base_model, "") if len(lengths) > 1 else None)

    def _remembered(self, base_model: BaseModel, caption: str) -> Conditioning:
        """Encode a caption unless it came by lately; an empty one, which dropout gives, often did."""
        if caption not in self._encoded:
            with torch.no_grad():
                self._encoded[caption] = base_model.encode_captions([caption]).to("cpu")
            if len(self._encoded) > MOST_REMEMBERED:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(caption)
        return self._encoded[caption]
