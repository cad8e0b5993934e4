"""Schedule-Free optimizers (arXiv 2405.15682) take gradients at one point of the weights and use
another, their average.
"""

import torch

from .parameter_groups import ParamGroup


def is_schedule_free(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether an optimizer is a Schedule-Free one."""
    return "weight_lr_power" in optimizer.param_groups[0]


def averaged_weights(
    optimizer: torch.optim.Optimizer, group: ParamGroup, parameter: torch.nn.Parameter
) -> torch.Tensor:
    """Return the values of a parameter that are to be used; nothing is changed.

    With Schedule-Free that is its averaged point x = y + (1 - 1/beta1)(z - y), where y is the
    parameter, at which gradients are taken (arXiv 2405.15682); else the parameter itself.
    """
    if "weight_lr_power" not in group:
        return parameter.detach()
    z = optimizer.state.get(parameter, {}).get("z")
    if z is None:
        return parameter.detach()
    return parameter.detach().lerp(z, 1 - 1 / group["betas"][0])
