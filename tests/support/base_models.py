"""The state of a base model, to see that a run left it alone."""

import torch


def state_of(unet):
    """Everything that a run must leave as it was."""
    return (
        {name: tensor.clone() for name, tensor in unet.state_dict().items()},
        {name: id(module) for name, module in unet.named_modules()},
        {
            name: (parameter.requires_grad, parameter.data_ptr())
            for name, parameter in unet.named_parameters()
        },
        {name: (module.training, sorted(vars(module))) for name, module in unet.named_modules()},
        dict(unet.named_parameters()).keys(),
    )


def assert_untouched(before, unet):
    after = state_of(unet)
    assert (
        all(torch.equal(before[0][name], after[0][name]) for name in before[0])
        and before[0].keys() == after[0].keys()
    )
    assert before[1:] == after[1:]
