"""What tests of training share: encoded pictures, adapters and a train state of the tiny model."""

import torch

from lora_trainer.dataset.caption_augmentation import CaptionAugmentation
from lora_trainer.lora.adapter_layers import AdapterSpec
from lora_trainer.lora.adapters import Adapters
from lora_trainer.lora.target_layers import LayerSettings, assign_ranks
from lora_trainer.training.compute_mode import ComputeMode
from lora_trainer.training.conditioning import Conditioner
from lora_trainer.training.learning_rates import LearningRates
from lora_trainer.training.objective import Objective
from lora_trainer.training.optimizers import make_optimizer
from lora_trainer.training.precision import grad_scaler
from lora_trainer.training.step import forward_backward
from lora_trainer.training.train_state import TrainState
from lora_trainer.training.training_data import TrainingData

CPU, PLAIN = torch.device("cpu"), CaptionAugmentation()


def make_training_data(
    pictures, schedule, objective=Objective(), variation=PLAIN, trained=False, **more
):
    return TrainingData(
        pictures, schedule, objective, Conditioner(variation, trains_text_encoder=trained), **more
    )


def make_adapters(model, *, text_encoder=False, **form):
    parts = model.parts()
    parts.requires_grad_(False)
    return Adapters.create(
        parts,
        assign_ranks(
            parts, LayerSettings(targets="attention", rank=4, alpha=4.0, text_encoder=text_encoder)
        ),
        AdapterSpec(**form),
    )


def make_train_state(adapters, *, rate=1e-2, steps=4, **settings):
    optimizer = make_optimizer(
        "adamw", {"all": adapters.parameters()}, learning_rates={"all": rate}, weight_decay=0.0
    )
    return TrainState(
        adapters,
        optimizer,
        LearningRates("constant", optimizer, warmup_steps=0, total_steps=steps),
        device=CPU,
        dtype=torch.float32,
        **settings,
    )


def gradients(model, adapters, training_data, compute_mode=ComputeMode(torch.float32)):
    """The gradients of one step and its loss."""
    for parameter in adapters.parameters():
        parameter.grad = None
    with adapters.attached():
        loss = forward_backward(
            model, training_data, 0, compute_mode, grad_scaler(CPU, torch.float32)
        )
    return loss, [
        torch.zeros_like(each) if each.grad is None else each.grad.clone()
        for each in adapters.parameters()
    ]
