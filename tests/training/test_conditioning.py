"""Captions that vary are encoded at each step, others once."""

import torch

from lora_trainer.dataset.caption_augmentation import CaptionAugmentation
from lora_trainer.training.conditioning import Conditioner
from lora_trainer.training.encoded_dataset import assemble
from tests.support.samples import encoded_pictures
from tests.support.training import PLAIN


def test_captions_that_vary_are_encoded_anew_and_drawn_from_the_number_alone(host):
    texts = Conditioner(CaptionAugmentation(shuffle=True))
    batch = assemble(encoded_pictures(4, caption="a, b, c, d, e"), [0, 1, 2, 3], seed=1, number=5)
    captions = texts.draw_captions(batch, seed=1, number=5)
    assert (
        captions
        == Conditioner(CaptionAugmentation(shuffle=True)).draw_captions(batch, seed=1, number=5)
        != texts.draw_captions(batch, seed=1, number=6)
        and len(set(captions)) > 1
    )
    finished = texts.conditioning(host.model, batch, captions, slice(1, 3), torch.float32)
    assert (
        torch.equal(finished.hidden_states, host.model.encode_captions(captions[1:3]).hidden_states)
        and not finished.hidden_states.requires_grad
    )


def test_captions_that_do_not_vary_are_those_encoded_before(host):
    batch = assemble(encoded_pictures(), [0, 1, 2, 3], seed=1, number=5)
    finished = Conditioner(PLAIN).conditioning(
        host.model, batch, batch.captions, slice(1, 3), torch.float32
    )
    assert torch.equal(finished.hidden_states, batch.conditioning.hidden_states[1:3])
