"""Samples for tests of training, without pictures on disk."""

from pathlib import Path

import torch

from lora_trainer.base.contracts import Conditioning, Size
from lora_trainer.dataset.buckets import Bucket
from lora_trainer.dataset.sample import Picture, Sample
from lora_trainer.training.encoded_dataset import EncodedSample

SIZE = Size(64, 64, 0, 0, 64, 64)


def sample_of(caption="", **changes):
    """A sample of a picture of 64x64 pixels."""
    return Sample(
        **{
            "picture": Picture(Path("a.png"), 64, 64, caption),
            "caption": caption,
            "bucket": Bucket(64, 64),
            "role": "train",
            "repeats": 1,
            "loss_weight": 1.0,
            "mask": None,
            "resolution_px": 64,
            **changes,
        }
    )


def encoded_pictures(count=4, *, masks=None, repeats=(), **changes):
    """Encoded samples of random latents and text embeddings, one for each of `repeats` where they
    are given; `changes` are of the samples.
    """
    draws = torch.Generator().manual_seed(0)
    return [
        EncodedSample(
            sample_of(**{"caption": f"picture, number {number}", "repeats": each, **changes}),
            latents=torch.randn(1, 4, 8, 8, generator=draws),
            masks=masks,
            sizes=(SIZE,),
            conditioning=Conditioning(torch.randn(1, 77, 12, generator=draws)),
        )
        for number, each in enumerate(repeats or (1,) * count)
    ]
