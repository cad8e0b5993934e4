"""The host in AUTOMATIC1111's WebUI: trains the checkpoint that is loaded there.

`WebUIHost.borrow_model()` waits for the WebUI's queue and lends the model (`loan`), a `BaseModel`
(`model`). Only this package imports the WebUI's `modules`; references such as restart.py:16 are to
its version 1.10.1.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from modules import (
    call_queue,
    devices,
    launch_utils,
    lowvram,
    paths,
    processing,
    sd_models,
    shared,
)
from PIL import Image

from ...base.contracts import BaseModel, Host, ModelStatus
from ...base.errors import ErrorCode, Refused
from ...base.patching import outline_of
from ...captioning.contracts import Captioner
from .captioners import webui_captioners
from .checkpoint import status_of
from .loan import Loan
from .loras import forget_lora, list_again, loras_in, remove_loras
from .model import parts_of
from .model_movers import ModelMovers
from .model_state import clean_state, random_state

log = logging.getLogger(__name__)
PREVIEW_SAMPLER = "Euler"


class WebUIHost(Host):
    """Lends the WebUI's loaded checkpoint, and draws previews with it."""

    kind = "webui"
    changes_checkpoints = True

    def __init__(self) -> None:
        self.version = launch_utils.git_tag()
        self.lora_dir = Path(
            getattr(shared.cmd_opts, "lora_dir", os.path.join(paths.models_path, "Lora"))
        )
        self.data_dir = Path(
            getattr(shared.cmd_opts, "train_lora_dir", None)
            or os.path.join(paths.data_path, "train_lora")
        ).absolute()
        self._queue_holder: int | None = None  # the thread that holds the WebUI's queue
        self._movers = ModelMovers()
        self._loan: Loan | None = None
        self._lent_parts: torch.nn.Module | None = None

    def model_status(self) -> ModelStatus:
        return status_of(sd_models.model_data.sd_model)

    def loaded_parts(self) -> torch.nn.ModuleDict | None:
        """As `Host.loaded_parts`; while the model is lent, without the adapters on it."""
        lent = self._lent_parts
        if lent is not None:
            return lent
        sd_model = sd_models.model_data.sd_model
        return parts_of(sd_model) if status_of(sd_model).trainable else None

    @property
    def default_size_px(self) -> int:
        return status_of(sd_models.model_data.sd_model).size_px or 512

    @contextlib.contextmanager
    def borrow_model(self) -> Iterator[BaseModel]:
        """As `Host.borrow_model`; waits for the model and whoever uses it. One loan at a time."""
        _wait_until_loaded()
        loan = Loan(self._queue_held, self.others_are_waiting, self._movers)
        with self._movers.patched():
            try:
                base_model = loan.begin()
                self._loan = loan
                self._lent_parts = outline_of(parts_of(sd_models.model_data.sd_model))
                yield base_model
            finally:
                self._loan = self._lent_parts = None
                loan.give_back()

    def give_way(
        self,
        *,
        until: Callable[[], bool] = lambda: True,
        on_wait: Callable[[str, str], None] = lambda waiting_for, sentence: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        assert self._loan is not None
        return self._loan.give_way(until=until, on_wait=on_wait, should_stop=should_stop)

    def prepare_picture(self, prompts: list[str]) -> None:
        """Write the LoRA that is being trained if the prompts call it; called in the thread that
        draws, before it does.
        """
        if self.live_lora is None:
            return
        name, write = self.live_lora
        if name not in loras_in(prompts):
            return
        try:
            if path := write():
                self._replace(path)
        except Exception as error:  # the picture is more important than the newest weights
            log.warning(
                "the LoRA %s could not be brought up to date for this picture: %s",
                name,
                error,
                exc_info=True,
            )

    def load_checkpoint(self, name: str) -> None:
        """Load the checkpoint of this name onto the device, as choosing it at the top left does.

        One that is loaded already is loaded anew.
        """
        info = sd_models.get_closet_checkpoint_match(name)
        if info is None or info.name_for_extra != name:
            raise Refused(
                f"The checkpoint {name} is not in the WebUI's folder any more. Put it back, press"
                " the refresh button at the top left, and try again.",
                code=ErrorCode.NOT_FOUND,
            )
        with self._queue_held():
            shared.opts.data["sd_model_checkpoint"] = info.title
            if not shared.cmd_opts.freeze_settings:
                shared.opts.save(shared.config_filename)  # also for the WebUI's next start
            loaded = sd_models.model_data.sd_model
            is_loaded = loaded is not None and loaded.sd_checkpoint_info.filename == info.filename
            sd_models.reload_model_weights(info=info, forced_reload=is_loaded)
            sd_models.send_model_to_device(sd_models.model_data.sd_model)

    @property
    def device(self) -> torch.device:
        """Where the WebUI's own captioners compute, by `--use-cpu interrogate`."""
        return devices.device_interrogate

    @contextlib.contextmanager
    def exclusive_use(self) -> Iterator[None]:
        """Hold the queue; under --medvram and --lowvram the part of the checkpoint that is on the
        GPU makes room, as for Interrogate.
        """
        with self._queue_held():
            lowvram.send_everything_to_cpu()
            yield

    def others_are_waiting(self) -> bool:
        """Tell whether somebody waits in the queue or to move the model; True where the queue's
        private list of waiting threads cannot be read.
        """
        waiting = getattr(call_queue.queue_lock, "_pending_threads", None)
        if waiting is None:
            return True
        return len(waiting) > 0 or self._movers.is_waited_for()

    def captioners(self) -> list[Captioner]:
        return webui_captioners(self._queue_held)

    def register(self, path: Path) -> None:
        with self._queue_held():
            self._replace(Path(path))

    def _replace(self, path: Path) -> None:
        remove_loras(list(sd_models.model_data.loaded_sd_models))
        forget_lora(path)
        list_again()

    def generate(
        self,
        prompt: str,
        *,
        negative_prompt: str = "",
        seed: int = 0,
        steps: int = 20,
        guidance: float = 7.0,
        width: int | None = None,
        height: int | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Image.Image:
        """Draw as the WebUI's own page would, but save nothing and leave no LoRA, random state or
        setting behind.
        """
        with self._queue_held(), _without_prompt_history():
            sd_model = shared.sd_model
            info = sd_model.sd_checkpoint_info
            chosen = sd_models.checkpoint_aliases.get(shared.opts.sd_model_checkpoint)
            override = {} if chosen is info else {"sd_model_checkpoint": info.title}
            request = processing.StableDiffusionProcessingTxt2Img(
                sd_model=sd_model,
                prompt=prompt,
                negative_prompt=negative_prompt,
                seed=seed,
                steps=steps,
                cfg_scale=guidance,
                width=width or self.default_size_px,
                height=height or self.default_size_px,
                sampler_name=PREVIEW_SAMPLER,
                do_not_save_samples=True,
                do_not_save_grid=True,
                override_settings=override,
            )
            with random_state(sd_model), clean_state(sd_model), contextlib.closing(request):
                shared.state.begin(job="train_lora_preview")
                try:
                    return processing.process_images(request).images[0]
                finally:
                    shared.state.end()
                    shared.total_tqdm.clear()
                    remove_loras([sd_model])

    @contextlib.contextmanager
    def _queue_held(self) -> Iterator[None]:
        """Hold the WebUI's queue lock, which a thread can take only once."""
        if self._queue_holder == threading.get_ident():
            yield
            return
        with call_queue.queue_lock:
            self._queue_holder = threading.get_ident()
            try:
                yield
            finally:
                self._queue_holder = None


def _wait_until_loaded() -> None:
    """Wait for the loading at the WebUI's start, which goes on outside the queue."""
    _ = shared.sd_model  # a property, which loads or waits
    with sd_models.model_data.lock:
        pass


@contextlib.contextmanager
def _without_prompt_history() -> Iterator[None]:
    """Keep the user's last prompt, which the WebUI's button restores."""
    before = shared.cmd_opts.no_prompt_history
    shared.cmd_opts.no_prompt_history = True
    try:
        yield
    finally:
        shared.cmd_opts.no_prompt_history = before
