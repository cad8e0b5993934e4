"""For tests only: routes that look into the running WebUI, so that tests outside can check what
training promises.
"""

import threading
import time
from pathlib import Path

import torch
from fastapi import Body
from modules import call_queue, devices, script_callbacks, sd_hijack, shared
from starlette.requests import HTTPConnection
from train_lora_probing import difference, digest, host, in_thread, networks, state, unmatched


def inputs(count: int = 2) -> tuple:
    """Latents of 128-pixel pictures: in those of 64 the deepest maps are 1x1, whose memory layout,
    and so rounding, changes with what is added.
    """
    draws = torch.Generator().manual_seed(7)
    width = (
        shared.sd_model.model.diffusion_model.input_blocks[1][1]
        .transformer_blocks[0]
        .attn2.to_k.in_features
    )
    return (
        torch.randn(count, 4, 16, 16, generator=draws),
        torch.tensor([10, 900][:count]),
        torch.randn(count, 77, width, generator=draws),
    )


def predict_with_webui(names: list) -> torch.Tensor:
    """Predict as a picture would, with LoRA files through the built-in loader at weight 1."""
    latents, timesteps, context = inputs()
    with call_queue.queue_lock, torch.no_grad(), devices.autocast():
        networks().load_networks(names, [1.0] * len(names), [1.0] * len(names), [None] * len(names))
        try:
            return (
                shared.sd_model.apply_model(
                    latents.to(devices.device),
                    timesteps.to(devices.device),
                    context.to(devices.device),
                )
                .float()
                .cpu()
            )
        finally:
            networks().load_networks([], [], [], [])


def predict_with_trainer(path: str) -> torch.Tensor:
    """Predict as training does: our adapters on the borrowed model, holding the file's weights."""
    from lora_trainer.lora.adapters import Adapters
    from lora_trainer.lora.load import fit_to_model, inspect_lora

    with host().borrow_model() as base:
        shapes, weights, form = fit_to_model(
            inspect_lora(Path(path)), base.parts(), base.export_name
        )
        adapters = Adapters.create(base.parts(), shapes, form)
        adapters.load(weights)
        with adapters.attached():
            return predict(base)


def differences_at_start() -> dict:
    """How far new adapters on each choice of layers move the prediction."""
    from lora_trainer.lora.adapters import Adapters
    from lora_trainer.lora.target_layers import LayerSettings, assign_ranks

    moved = {}
    with host().borrow_model() as base:
        bare = predict(base)
        for targets in ("attention", "attention+feed-forward", "all"):
            with Adapters.create(
                base.parts(),
                assign_ranks(base.parts(), LayerSettings(targets=targets, rank=4, alpha=4)),
            ).attached():
                moved[targets] = float((predict(base) - bare).abs().max())
        moved["none"] = float((predict(base) - bare).abs().max())
    return moved


def predict(base) -> torch.Tensor:
    from lora_trainer.base.contracts import Conditioning

    latents, timesteps, context = (each.to(base.device) for each in inputs())
    with torch.no_grad():
        return base.predict(latents, timesteps, Conditioning(context)).cpu()


def fail_in_the_middle() -> dict:
    """Raise from inside a forward pass, adapters attached, gradient checkpointing on, nothing
    tidied up by the trainer itself.
    """
    from lora_trainer.base.contracts import Conditioning
    from lora_trainer.lora.adapter_layers import AdapterSpec
    from lora_trainer.lora.adapters import Adapters
    from lora_trainer.lora.target_layers import LayerSettings, assign_ranks
    from lora_trainer.training.precision import gradient_checkpointing

    before = state()

    def run():
        with host().borrow_model() as base:
            choice = LayerSettings(targets="all", rank=2, alpha=2, text_encoder=True)
            adapters = Adapters.create(
                base.parts(), assign_ranks(base.parts(), choice), AdapterSpec(dropout=0.1), seed=0
            )
            adapters.attach()
            gradient_checkpointing(base.parts(), True).__enter__()
            base.encode_captions(["a circle"]).hidden_states.square().mean().backward()
            latents, timesteps, context = inputs()
            base.predict(latents, timesteps, Conditioning(context)).square().mean().backward()
            base.unet.train()
            base.unet.peft_config = {}
            next(base.unet.parameters()).requires_grad_(True)
            torch.randn(5)
            raise ZeroDivisionError("in the middle")

    try:
        in_thread(run)
        raised = None
    except ZeroDivisionError as error:
        raised = str(error)
    return {"raised": raised, "before": before, "after": state()}


def encodings(caption: str) -> dict:
    """Compare the host's encoding with the WebUI's own for a plain caption, and with its posterior
    mean for a picture.
    """
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    with call_queue.queue_lock, torch.no_grad(), devices.autocast():
        theirs = shared.sd_model.get_learned_conditioning([caption]).float().cpu()
        mean = (
            shared.sd_model.first_stage_model.encode(pixels.to(devices.device, devices.dtype_vae))
            .mean.float()
            .cpu()
            * shared.sd_model.scale_factor
        )
    comments, before = (
        list(sd_hijack.model_hijack.comments),
        dict(sd_hijack.model_hijack.extra_generation_params),
    )
    with host().borrow_model() as base, torch.no_grad():
        ours = base.encode_captions([caption]).hidden_states.cpu()
        latents = base.encode_images(pixels).cpu()
    return {
        "shape": list(ours.shape),
        "same_shape": ours.shape == theirs.shape,
        "caption_difference": difference(ours, theirs) if ours.shape == theirs.shape else None,
        "dtype": str(ours.dtype),
        "requires_grad": ours.requires_grad or latents.requires_grad,
        "picture_difference": difference(latents, mean),
        "untouched": (
            comments == sd_hijack.model_hijack.comments
            and before == sd_hijack.model_hijack.extra_generation_params
        ),
    }


def refusals() -> dict:
    """Pretend that settings are others, and collect what the host says."""
    from lora_trainer.hosts.webui import host as webui

    model, flags, said = shared.sd_model, shared.cmd_opts, {}

    def ask(case, owner, name, value):
        before = getattr(owner, name)
        setattr(owner, name, value)
        try:
            status = webui.status_of(model)
            said[case] = None if status.trainable else status.reason
        finally:
            setattr(owner, name, before)

    ask("as it is", flags, "lowvram", False)
    ask("lowvram", flags, "lowvram", True)
    ask("upcast sampling", flags, "upcast_sampling", True)
    ask("precision half", flags, "precision", "half")
    ask("fp8", devices, "fp8", True)
    ask("editing", model.model.diffusion_model, "in_channels", 8)
    ask("not set up for inpainting", model.model.diffusion_model, "in_channels", 9)
    ask("another family", model, "is_sd1", False)
    ask("another text encoder", model, "cond_stage_model", torch.nn.Module())
    said["none"] = webui.status_of(None).reason
    return said


def guard(api_auth: str | None, login: bool) -> dict:
    """Say whom the guard lets in, with --api-auth as given and a login of gradio's or none."""
    from fastapi import HTTPException

    from lora_trainer.hosts.webui import guard as webui_guard

    app = type(
        "App", (), {"auth": {"user": "word"} if login else None, "tokens": {"good": "user"}}
    )()
    before, shared.cmd_opts.api_auth = shared.cmd_opts.api_auth, api_auth
    try:
        ask = webui_guard.make_guard(app)
    finally:
        shared.cmd_opts.api_auth = before
    headers = {
        "nobody": [],
        "cookie": [(b"cookie", b"access-token=good")],
        "wrong cookie": [(b"cookie", b"access-token-unsecure=bad")],
        "basic": [(b"authorization", b"Basic dTpwOnc=")],
        "wrong basic": [(b"authorization", b"Basic dTpwOng=")],
        "nonsense": [(b"authorization", b"Basic \xff%%")],
    }
    said = {}
    for name, given in headers.items():
        try:
            ask(HTTPConnection({"type": "http", "headers": given}))
            said[name] = "in"
        except HTTPException as error:
            said[name] = error.status_code
    return said


def cards() -> dict:
    """Say in which tabs the card of each LoRA would be in a page opened now."""
    pages = {}
    for function in shared.demo.fns:
        if getattr(function.fn, "__name__", "") == "pages_html":
            ui = next(
                cell.cell_contents
                for cell in function.fn.__closure__
                if hasattr(cell.cell_contents, "pages_contents")
            )
            pages[ui.tabname] = "".join(function.fn())
    return {
        tab: [name for name in networks().available_networks if f'data-name="{name}"' in html]
        for tab, html in pages.items()
    }


WAITS: list = []


def steps_done() -> int:
    from lora_trainer.hosts.webui.service import training_service

    job = training_service().current_job()
    return (job or {}).get("step") or 0


def record_waits() -> None:
    """Note for everybody but the trainer how long they waited for the queue's lock, and how many
    steps were finished meanwhile.
    """
    kind = type(call_queue.queue_lock)
    if hasattr(kind, "unrecorded"):
        return
    kind.unrecorded = kind.acquire

    def acquire(self, blocking=True):
        if threading.current_thread().name.startswith("train-lora"):
            return self.unrecorded(blocking)
        asked_at, asked_step = time.perf_counter(), steps_done()
        got = self.unrecorded(blocking)
        WAITS.append(
            {"seconds": time.perf_counter() - asked_at, "steps": steps_done() - asked_step}
        )
        return got

    kind.acquire = kind.__enter__ = acquire


def read_waits() -> list:
    found = list(WAITS)
    WAITS.clear()
    return found


BUSY: list = []


def keep_busy(threads: int) -> None:
    """Let threads compute in Python, as other extensions may, so that who is woken does not run at
    once.
    """
    while BUSY:
        BUSY.pop().set()
    for _ in range(threads):
        over = threading.Event()
        BUSY.append(over)
        threading.Thread(
            target=lambda over=over: [sum(range(1000)) for _ in iter(over.is_set, True)],
            daemon=True,
        ).start()


MOVES: list = []


def record_moves() -> None:
    """Note whether the WebUI moves the model while a step has it."""
    from modules import sd_models

    if hasattr(sd_models, "unrecorded_move"):
        return
    sd_models.unrecorded_move = sd_models.send_model_to_cpu

    def move(model):
        MOVES.append(host()._queue_holder is not None)
        return sd_models.unrecorded_move(model)

    sd_models.send_model_to_cpu = move


def same_config(on: bool) -> None:
    """Let all checkpoints have the loaded one's config, so that another is loaded into the same
    objects; the real thing needs gigabytes.
    """
    from modules import sd_models_config

    if not hasattr(sd_models_config, "unpatched"):
        sd_models_config.unpatched = sd_models_config.find_checkpoint_config
    loaded = shared.sd_model.used_config
    sd_models_config.find_checkpoint_config = (
        (lambda state_dict, info: loaded) if on else sd_models_config.unpatched
    )


def on_app_started(demo, app):  # noqa: C901
    record_waits()
    record_moves()
    app.add_api_route("/probe/moves", lambda: MOVES, methods=["GET"])
    app.add_api_route("/probe/waits", read_waits, methods=["GET"])
    app.add_api_route("/probe/model-object", lambda: id(shared.sd_model), methods=["GET"])

    @app.post("/probe/same-config")
    def _same_config(body: dict = Body(...)):
        same_config(body["on"])

    @app.post("/probe/out-of-memory")
    def _out_of_memory(body: dict = Body(...)):
        """Let the next allocations of a training step fail as a GPU's do."""
        from lora_trainer.hosts.webui.model import WebUIModel

        if not hasattr(WebUIModel, "unfailing"):
            WebUIModel.unfailing = WebUIModel.predict
        left = [body["times"]]

        def predict(self, *args):
            if left[0] > 0:
                left[0] -= 1
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return self.unfailing(*args)

        WebUIModel.predict = predict

    @app.post("/probe/busy")
    def _busy(body: dict = Body(...)):
        keep_busy(body["threads"])

    @app.post("/probe/spoil")
    def _spoil():
        """Change a weight of the base, as an extension might."""
        with call_queue.queue_lock, torch.no_grad():
            shared.sd_model.model.diffusion_model.out[2].weight.mul_(1.01)

    @app.post("/probe/reload-ui")
    def _reload_ui():
        shared.state.request_restart()

    app.add_api_route("/probe/state", state, methods=["GET"])
    app.add_api_route("/probe/cards", cards, methods=["GET"])
    app.add_api_route("/probe/refusals", refusals, methods=["GET"])
    app.add_api_route("/probe/fail", fail_in_the_middle, methods=["POST"])

    @app.post("/probe/encodings")
    def _encodings(body: dict = Body(...)):
        return in_thread(lambda: encodings(body["caption"]))

    @app.post("/probe/guard")
    def _guard(body: dict = Body(...)):
        return guard(body["api_auth"], body["login"])

    @app.post("/probe/predictions")
    def _predictions(body: dict = Body(...)):
        """One LoRA file, three ways: without it, by the WebUI's loader, by our adapters."""
        name = body["name"]
        bare, theirs = predict_with_webui([]), predict_with_webui([name])
        path = networks().available_networks[name].filename
        return {
            "effect": difference(theirs, bare),
            "difference": difference(in_thread(lambda: predict_with_trainer(path)), theirs),
            "start_differences": in_thread(differences_at_start),
            "unmatched": unmatched(name),
        }

    @app.post("/probe/generate")
    def _generate(body: dict = Body(...)):
        picture = in_thread(lambda: host().generate(**body))
        return {"size": list(picture.size), "pixels": digest(picture.tobytes())}

    @app.post("/probe/generate-while-lent")
    def _generate_while_lent(body: dict = Body(...)):
        def run():
            with host().borrow_model() as base:
                picture = host().generate(**body)
                names = [
                    name
                    for name, module in base.unet.named_modules()
                    if getattr(module, "network_current_names", ())
                ]
                return {"pixels": digest(picture.tobytes()), "left": names}

        return in_thread(run)


script_callbacks.on_app_started(on_app_started)
