"""A standalone host for each family, on a narrow checkpoint, loaded once for all tests of this
folder.
"""

import functools

import pytest
import torch

from tests.support import narrow_checkpoint


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Return the path of a family's checkpoint, written when it is first asked for."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return functools.cache(lambda name: narrow_checkpoint.write_family(name, folder))


@pytest.fixture(scope="session")
def hosts(checkpoints, tmp_path_factory):
    """Return a family's host."""
    from lora_trainer.hosts.standalone.host import StandaloneHost

    folder = tmp_path_factory.mktemp("hosts")
    return functools.cache(
        lambda name: StandaloneHost(
            checkpoints(name), folder / name / "loras", folder / name / "data", device="cpu"
        )
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
