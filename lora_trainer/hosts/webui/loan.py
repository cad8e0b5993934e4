"""The WebUI's model while it is lent: what must be so for training and comes back afterwards, and
giving it back in between.

Each concern is a small context manager: taken, then given back, whatever happens.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ldm.modules.attention
import ldm.modules.diffusionmodules.model
import sgm.modules.attention
import sgm.modules.diffusionmodules.model
import torch
from modules import (
    call_queue,
    devices,
    sd_hijack,
    sd_hijack_optimizations,
    sd_models,
    sd_unet,
    shared,
)

from ...base.errors import Refused
from ...base.fingerprint import fingerprint_of_weights
from .checkpoint import status_of
from .loras import remove_loras
from .model import FAMILIES, WebUIModel, encoders, text_encoders_of

log = logging.getLogger(__name__)
PAUSE_SECONDS, LET_IN_SECONDS, LOOK_AGAIN_SECONDS = (
    0.01,
    1.0,
    0.25,
)  # the queue's lock goes to who waits only after a pause


# --- Concerns -------------------------------------------------------------------------------------


@contextlib.contextmanager
def random_state(sd_model: Any) -> Iterator[None]:
    with torch.random.fork_rng(devices=[devices.device] if devices.device.type == "cuda" else []):
        yield


@contextlib.contextmanager
def frozen_weights(sd_model: Any) -> Iterator[None]:
    """Nothing of the base asks for a gradient; training flags stay as they are."""
    wanted = [(parameter, parameter.requires_grad) for parameter in sd_model.parameters()]
    training = [(module, module.training) for module in sd_model.modules()]
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
        for module, flag in training:
            module.training = flag


def _learning(sd_model: Any) -> list[torch.nn.Module]:
    """Everything that adapters go into."""
    return [sd_model.model.diffusion_model, *text_encoders_of(sd_model)]


@contextlib.contextmanager
def structure(sd_model: Any) -> Iterator[None]:
    """Module objects are those of before. The adapters put them back themselves; this is for the
    day when something prevents that.
    """
    learning = _learning(sd_model)
    children = [(module, dict(module._modules)) for part in learning for module in part.modules()]
    marked = [part for part in learning if hasattr(part, "peft_config")]
    try:
        yield
    finally:
        for module, before in children:
            if module._modules != before:
                log.warning("putting %s back as it was", type(module).__name__)
                module._modules.clear()
                module._modules.update(before)
        for part in learning:
            if part not in marked:
                vars(part).pop("peft_config", None)


@contextlib.contextmanager
def own_forwards(sd_model: Any) -> Iterator[None]:
    """UNet, text encoders and VAE run their classes' code: other extensions (hypertile, for one)
    leave theirs on the objects after a picture.
    """
    modules = [
        module
        for part in (*_learning(sd_model), sd_model.first_stage_model)
        for module in part.modules()
    ]
    left = {module: vars(module).pop("forward") for module in modules if "forward" in vars(module)}
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)
            if module in left:
                module.forward = left[module]


@contextlib.contextmanager
def clean_state(sd_model: Any) -> Iterator[None]:
    """What the last picture left in the model is gone: LoRAs, hypernetworks, tiling, another UNet.
    The latter three come back.
    """
    hijack, hypernetworks = sd_hijack.model_hijack, list(shared.loaded_hypernetworks)
    tiling, unet_option = hijack.circular_enabled, sd_unet.current_unet_option
    try:
        remove_loras([sd_model])
        shared.loaded_hypernetworks.clear()
        hijack.apply_circular(False)
        sd_unet.apply_unet("None")
        yield
    finally:
        shared.loaded_hypernetworks[:] = hypernetworks
        hijack.apply_circular(tiling)
        if sd_unet.current_unet_option is not unet_option:
            sd_unet.apply_unet(unet_option.label if unet_option else "None")


_ATTENTION = (
    ldm.modules.attention.CrossAttention,
    ldm.modules.diffusionmodules.model.AttnBlock,
    sgm.modules.attention.CrossAttention,
    sgm.modules.diffusionmodules.model.AttnBlock,
)


@contextlib.contextmanager
def training_attention(sd_model: Any) -> Iterator[None]:
    """torch's own attention, which keeps no attention matrices for the backward pass; the WebUI's
    default on a GPU keeps them all.
    """
    before, sdp = [each.forward for each in _ATTENTION], sd_hijack_optimizations.SdOptimizationSdp()
    try:
        if sdp.is_available():
            sdp.apply()
        yield
    finally:
        for each, forward in zip(_ATTENTION, before, strict=True):
            each.forward = forward


@contextlib.contextmanager
def encoders_back(sd_model: Any) -> Iterator[None]:
    """VAE and text encoders are where they were, if training moved them aside."""
    places = [(module, next(module.parameters()).device) for module in encoders(sd_model)]
    try:
        yield
    finally:
        if not sd_model.lowvram:
            for module, device in places:
                if next(module.parameters()).device != device:
                    module.to(device)


CONCERNS = (
    random_state,
    frozen_weights,
    structure,
    own_forwards,
    clean_state,
    training_attention,
    encoders_back,
)


# --- Moving the model -----------------------------------------------------------------------------


class Movers:
    """Keeps the WebUI from moving the model while a step uses it: its buttons that unload and load
    the checkpoint ask for no lock.
    """

    NAMES = ("send_model_to_cpu", "send_model_to_device", "send_model_to_trash")

    def __init__(self) -> None:
        self._lock, self._waiting, self._counter = threading.RLock(), 0, threading.Lock()

    def are_waiting(self) -> bool:
        return self._waiting > 0

    @contextlib.contextmanager
    def kept_off(self) -> Iterator[None]:
        """Nobody else moves the model while this lasts."""
        with self._lock:
            yield

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """While this lasts the WebUI's functions that move the model wait for `kept_off` to end."""
        originals = {name: getattr(sd_models, name) for name in self.NAMES}
        try:
            for name, original in originals.items():
                setattr(sd_models, name, self._waiting_for_us(original))
            yield
        finally:
            for name, original in originals.items():
                setattr(sd_models, name, original)

    def _waiting_for_us(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        def move(model: Any) -> None:
            with self._counter:
                self._waiting += 1
            try:
                with self._lock:
                    original(model)
            finally:
                with self._counter:
                    self._waiting -= 1

        return move


# --- The loan -------------------------------------------------------------------------------------


class Loan:
    """The loaded checkpoint in one thread's hands. `turn` is a context manager that holds the
    WebUI's queue, `others_are_waiting` tells whether somebody waits.
    """

    def __init__(
        self,
        turn: Callable[[], contextlib.AbstractContextManager[None]],
        others_are_waiting: Callable[[], bool],
        movers: Movers,
    ) -> None:
        self._turn, self._others_are_waiting, self._movers, self._taken = (
            turn,
            others_are_waiting,
            movers,
            contextlib.ExitStack(),
        )
        self.base_model: WebUIModel | None = None

    def begin(self) -> WebUIModel:
        """Wait for the queue and take the model; raises `Refused` when it cannot train."""
        with contextlib.ExitStack() as stack:
            self._hold(stack)
            sd_model = sd_models.model_data.sd_model
            if reason := self._unusable(sd_model):
                raise Refused(reason, code="not_trainable")
            self._filename = sd_model.sd_checkpoint_info.filename
            self._apply_concerns(stack, sd_model)
            self.base_model = FAMILIES[status_of(sd_model).family](sd_model)
            self.base_model.fingerprint = fingerprint_of_weights(self.base_model.unet)
            self._taken = stack.pop_all()
        return self.base_model

    def give_back(self) -> None:
        self._taken.close()

    def give_way(
        self,
        *,
        until: Callable[[], bool],
        on_wait: Callable[[str, str], None],
        should_stop: Callable[[], bool],
    ) -> bool:
        """Give the model back, wait until it may and can be had again, and take it; as
        `Host.give_way`.
        """
        somebody = self._others_are_waiting()
        self.give_back()
        _let_in(somebody)
        while not should_stop():
            if not until():
                _sleep_until(LOOK_AGAIN_SECONDS, should_stop)
            elif (problem := self._take_again()) is None:
                return True
            else:
                on_wait("checkpoint", problem)
                _sleep_until(LOOK_AGAIN_SECONDS, should_stop)
        return False

    def _take_again(self) -> str | None:
        """Take the model if it is as it was at the start; else say what keeps us."""
        with contextlib.ExitStack() as stack:
            self._hold(stack)
            sd_model = sd_models.model_data.sd_model
            if problem := self._missing(sd_model):
                return problem
            self._apply_concerns(stack, sd_model)
            if (
                fingerprint_of_weights(sd_model.model.diffusion_model)
                != self.base_model.fingerprint
            ):
                return (
                    f"Paused: the weights of {self.base_model.name} are not those of the start; a"
                    " setting or another extension changed them. Load the checkpoint again."
                )
            self.base_model.adopt(sd_model)
            self._taken = stack.pop_all()
        return None

    def _hold(self, stack: contextlib.ExitStack) -> None:
        stack.enter_context(self._turn())
        stack.enter_context(self._movers.kept_off())

    def _apply_concerns(self, stack: contextlib.ExitStack, sd_model: Any) -> None:
        stack.callback(devices.torch_gc)
        for concern in CONCERNS:
            stack.enter_context(concern(sd_model))

    def _missing(self, sd_model: Any) -> str | None:
        name = self.base_model.name
        if sd_model is None:
            return f"Paused: waiting for the checkpoint {name}; none is loaded."
        info = sd_model.sd_checkpoint_info
        if info.filename != self._filename:
            return f"Paused: waiting for the checkpoint {name}; {info.name_for_extra} is loaded."
        reason = self._unusable(sd_model)
        return f"Paused: waiting for the checkpoint {name}. {reason}" if reason else None

    def _unusable(self, sd_model: Any) -> str:
        return status_of(sd_model).reason


def _let_in(somebody: bool) -> None:
    """Wait until who waited has the queue's lock: released, it goes to whoever is quickest, and the
    one that was woken stands in no list any more.
    """
    time.sleep(PAUSE_SECONDS)
    lock, deadline = (
        getattr(call_queue.queue_lock, "_lock", None),
        time.monotonic() + LET_IN_SECONDS,
    )
    while somebody and lock is not None and not lock.locked() and time.monotonic() < deadline:
        time.sleep(0.001)


def _sleep_until(seconds: float, over: Callable[[], bool]) -> None:
    """Sleep, but not past the moment when `over` says yes."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not over():
        time.sleep(0.01)
