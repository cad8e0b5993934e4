"""The host that lives in AUTOMATIC1111's WebUI: trains the checkpoint that is loaded there. Only
the files webui*.py import `modules`.

`WebUIHost.borrow_model()` waits for its turn and lends the model (`webui_loan.py`), which is
described in `webui_model.py`. What the WebUI does, with file and line of its version 1.10.1,
decides what is a concern.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from modules import (
    call_queue,
    devices,
    launch_utils,
    lowvram,
    paths,
    processing,
    restart,
    sd_models,
    shared,
)

from ...base.contracts import BaseModel, Host, ModelStatus
from ...base.errors import Refused
from .captioners import webui_captioners
from .checkpoint import status_of
from .guard import allowed_roots, is_local
from .loan import Loan, Movers, clean_state, random_state
from .loras import forget_lora, list_again, loras_in, remove_loras
from .model import outline_of, parts_of

log = logging.getLogger(__name__)
PREVIEW_SAMPLER = "Euler"


class WebUIHost(Host):
    kind, changes_checkpoints = "webui", True

    def __init__(self) -> None:
        self.version = launch_utils.git_tag()
        self.lora_dir = Path(
            getattr(shared.cmd_opts, "lora_dir", os.path.join(paths.models_path, "Lora"))
        )
        self.data_dir = Path(
            getattr(shared.cmd_opts, "train_lora_dir", None)
            or os.path.join(paths.data_path, "train_lora")
        ).absolute()
        self._turn_of: int | None = None
        self._movers, self._loan, self._lent_parts = Movers(), None, None

    def model_status(self) -> ModelStatus:
        return status_of(sd_models.model_data.sd_model)

    def peek_parts(self) -> torch.nn.ModuleDict | None:
        """While the model is lent it is described as it was before: adapters may be in the place of
        its layers.
        """
        if (lent := self._lent_parts) is not None:
            return lent
        sd_model = sd_models.model_data.sd_model
        return parts_of(sd_model) if status_of(sd_model).trainable else None

    @property
    def default_size_px(self) -> int:
        sd_model = sd_models.model_data.sd_model
        return 512 if sd_model is None else status_of(sd_model).size_px or 512

    @contextlib.contextmanager
    def borrow_model(self) -> Iterator[BaseModel]:
        """Wait for the model and for whoever uses it; nothing else uses it until the end or
        `give_way`. One thread, one loan at a time.
        """
        _wait_until_loaded()
        loan = Loan(self._turn, self.others_are_waiting, self._movers)
        with self._movers.asked():
            try:
                base_model, self._loan = loan.begin(), loan
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
        return self._loan.give_way(until=until, on_wait=on_wait, should_stop=should_stop)

    def prepare_picture(self, prompts: list[str]) -> None:
        """Before a picture is drawn, in the thread that draws it: bring the LoRA that is being
        trained up to date, if the prompts name it.
        """
        name, write = self.live_lora or (None, None)
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
        """Load the checkpoint of this name, anew if it is loaded already, and to where it computes;
        as choosing it at the top left does.
        """
        info = sd_models.get_closet_checkpoint_match(name)
        if info is None or info.name_for_extra != name:
            raise Refused(
                f"The checkpoint {name} is not in the WebUI's folder any more. Put it back, press"
                " the refresh button at the top left, and try again.",
                code="not_found",
            )
        with self._turn():
            shared.opts.data["sd_model_checkpoint"] = info.title
            if not shared.cmd_opts.freeze_settings:
                shared.opts.save(
                    shared.config_filename
                )  # also for the next start, as the choice at the top left
            loaded = sd_models.model_data.sd_model
            sd_models.reload_model_weights(
                info=info,
                forced_reload=loaded is not None
                and loaded.sd_checkpoint_info.filename == info.filename,
            )
            sd_models.send_model_to_device(sd_models.model_data.sd_model)

    @property
    def device(self) -> torch.device:
        """Where the WebUI's own captioners compute: `--use-cpu interrogate` counts for ours,
        too.
        """
        return devices.device_interrogate

    @contextlib.contextmanager
    def exclusive_use(self) -> Iterator[None]:
        """Hold the queue; under --medvram and --lowvram the part of the checkpoint that is on the
        GPU makes room, as for Interrogate.
        """
        with self._turn():
            lowvram.send_everything_to_cpu()
            yield

    def others_are_waiting(self) -> bool:
        """Tell whether somebody waits in the queue; its list of waiters is private, and where it is
        not to be seen somebody always may.
        """
        waiting = getattr(call_queue.queue_lock, "_pending_threads", None)
        return waiting is None or len(waiting) > 0 or self._movers.are_waiting()

    def captioners(self) -> list[Any]:
        return webui_captioners(self._turn)

    def register(self, path: Path) -> None:
        with self._turn():
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
    ) -> Any:
        """Draw as the WebUI's own page would, but save nothing and leave no LoRA, random state or
        setting behind.
        """
        with self._turn(), _without_prompt_history():
            sd_model = shared.sd_model
            info = sd_model.sd_checkpoint_info  # not another that was chosen meanwhile
            another = sd_models.checkpoint_aliases.get(shared.opts.sd_model_checkpoint) is not info
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
                override_settings={"sd_model_checkpoint": info.title} if another else {},
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
    def _turn(self) -> Iterator[None]:
        """Hold the WebUI's queue lock, which a thread can take only once."""
        if self._turn_of == threading.get_ident():
            yield
            return
        with call_queue.queue_lock:
            self._turn_of = threading.get_ident()
            try:
                yield
            finally:
                self._turn_of = None


def _wait_until_loaded() -> None:
    """Loading at the start goes on outside the queue; it is over when its own lock is free."""
    _ = shared.sd_model  # a property, which loads or waits
    with sd_models.model_data.lock:
        pass


@contextlib.contextmanager
def _without_prompt_history() -> Iterator[None]:
    """The prompt that the WebUI's button brings back stays the user's."""
    before, shared.cmd_opts.no_prompt_history = shared.cmd_opts.no_prompt_history, True
    try:
        yield
    finally:
        shared.cmd_opts.no_prompt_history = before


@functools.cache
def training_service() -> Any:
    """Return this process's one TrainingService. It survives "Reload UI", which runs scripts anew
    but keeps imported packages.
    """
    from ...jobs.service import TrainingService

    host = WebUIHost()
    roots = allowed_roots(host)
    service = TrainingService(
        host, allowed_roots=None if is_local() else roots, foreign_roots=roots, limits=_limits()
    )
    _end_well(service)
    return service


def _limits() -> Any:
    """Return what is kept of finished jobs, as the WebUI's command line says."""
    from ...jobs.storage import Limits

    names = {field.name: f"train_lora_{field.name}" for field in dataclasses.fields(Limits)}
    given = {name: getattr(shared.cmd_opts, option, None) for name, option in names.items()}
    return Limits(**{name: value for name, value in given.items() if value is not None})


def _end_well(service: Any) -> None:
    """Keep the running job's progress however the WebUI ends: signals, its own end, and its
    buttons, which end it by `os._exit` (restart.py:16-25).
    """
    from ...base.shutdown import close_at_end

    close_at_end(service.close)
    stop_program = restart.stop_program

    def stop() -> None:
        service.close()
        stop_program()

    restart.stop_program = stop
