"""A UNet and two text encoders."""

import pytest
import torch

from tests.support.open_clip_text import OpenClipText


@pytest.fixture
def parts(host):
    """UNet, a transformers text encoder and an open_clip one."""
    torch.manual_seed(0)
    return torch.nn.ModuleDict({**host.model.parts(), "te2": OpenClipText().eval()}).requires_grad_(
        False
    )
