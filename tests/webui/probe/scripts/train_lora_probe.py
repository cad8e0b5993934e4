"""For tests only: routes that look into the running WebUI, so that tests outside can check what training promises."""
import hashlib
import sys
import threading
import time

import ldm.modules.attention
import ldm.modules.diffusionmodules.model
import sgm.modules.attention
import sgm.modules.diffusionmodules.model
import torch
from fastapi import Body
from safetensors import safe_open
from safetensors.torch import load_file
from starlette.requests import HTTPConnection

from modules import call_queue, devices, extra_networks, script_callbacks, sd_hijack, sd_unet, shared

ATTENTION = {"ldm": ldm.modules.attention.CrossAttention, "ldm VAE": ldm.modules.diffusionmodules.model.AttnBlock,
             "sgm": sgm.modules.attention.CrossAttention, "sgm VAE": sgm.modules.diffusionmodules.model.AttnBlock}


def digest(*parts) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part if isinstance(part, bytes) else str(part).encode())
    return hashed.hexdigest()


def state() -> dict:
    """Everything of the base model that training must leave as it was; addresses and object ids included."""
    model = shared.sd_model
    tensors, modules = list(model.state_dict(keep_vars=True).items()), list(model.named_modules())
    return {
        "weights": digest(*(part for name, tensor in tensors for part in (name, tensor.dtype, tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()))),
        "storages": digest(*((name, tensor.data_ptr(), id(tensor)) for name, tensor in tensors)),
        "modules": digest(*((name, type(module).__qualname__, id(module)) for name, module in modules)),
        "requires_grad": digest(*((name, parameter.requires_grad) for name, parameter in model.named_parameters())),
        "training": digest(*((name, module.training) for name, module in modules)),
        "own_forwards": [name for name, module in modules if "forward" in vars(module)],
        "hooks": digest(*((name, len(module._forward_hooks), len(module._forward_pre_hooks)) for name, module in modules)),
        "gradients": [name for name, parameter in model.named_parameters() if parameter.grad is not None],
        "attention": {name: f"{each.forward.__module__}.{each.forward.__qualname__} {id(each.forward)}" for name, each in ATTENTION.items()},
        "peft_config": hasattr(model.model.diffusion_model, "peft_config"),
        "hypernetworks": len(shared.loaded_hypernetworks),
        "tiling": [sd_hijack.model_hijack.circular_enabled, sum(getattr(module, "padding_mode", "") == "circular" for _, module in modules)],
        "unet_option": str(sd_unet.current_unet_option),
        "applied_loras": sum(bool(getattr(module, "network_current_names", ())) for _, module in modules),
        "random": digest(torch.get_rng_state().numpy().tobytes()),
        "fixes": str(sd_hijack.model_hijack.fixes),
        "options": {name: shared.opts.data.get(name) for name in ("sd_model_checkpoint", "cross_attention_optimization", "CLIP_stop_at_last_layers")},
        "locked": call_queue.queue_lock._lock.locked(),
    }


def networks():
    return sys.modules[type(extra_networks.extra_network_registry["lora"]).__module__].networks


def host():
    from lora_trainer.hosts import webui
    return webui.training_service().host


def inputs(count: int = 2) -> tuple:
    """Latents of 128-pixel pictures: in those of 64 the deepest maps are 1x1, whose memory layout, and so rounding, changes with what is added."""
    draws = torch.Generator().manual_seed(7)
    width = shared.sd_model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn2.to_k.in_features
    return torch.randn(count, 4, 16, 16, generator=draws), torch.tensor([10, 900][:count]), torch.randn(count, 77, width, generator=draws)


def predict_with_webui(names: list) -> torch.Tensor:
    """Predict as a picture would, with LoRA files through the built-in loader at weight 1."""
    latents, timesteps, context = inputs()
    with call_queue.queue_lock, torch.no_grad(), devices.autocast():
        networks().load_networks(names, [1.0] * len(names), [1.0] * len(names), [None] * len(names))
        try:
            return shared.sd_model.apply_model(latents.to(devices.device), timesteps.to(devices.device), context.to(devices.device)).float().cpu()
        finally:
            networks().load_networks([], [], [], [])


def predict_with_trainer(path: str) -> torch.Tensor:
    """Predict as training does: our adapters on the borrowed model, holding the file's weights."""
    from lora_trainer.core.adapters import Adapters, plan_shapes
    tensors, metadata = load_file(path), safe_open(path, "pt").metadata()
    with host().borrow_model() as base:
        targets = next(each for each in ("attention", "attention+feed-forward", "all") if covers(base, each, tensors))
        adapters = Adapters.create(base.unet, plan_shapes(base.unet, targets=targets, rank=int(metadata["ss_network_dim"]), alpha=float(metadata["ss_network_alpha"])))
        for place in adapters._places:
            name = base.export_name(place.path)
            with torch.no_grad():
                place.adapter.lora_A["default"].weight.copy_(tensors[f"{name}.lora_down.weight"])
                place.adapter.lora_B["default"].weight.copy_(tensors[f"{name}.lora_up.weight"])
        with adapters.attached():
            return predict(base)


def differences_at_start() -> dict:
    """How far new adapters on each choice of layers move the prediction."""
    from lora_trainer.core.adapters import Adapters, plan_shapes
    moved = {}
    with host().borrow_model() as base:
        bare = predict(base)
        for targets in ("attention", "attention+feed-forward", "all"):
            with Adapters.create(base.unet, plan_shapes(base.unet, targets=targets, rank=4, alpha=4)).attached():
                moved[targets] = float((predict(base) - bare).abs().max())
        moved["none"] = float((predict(base) - bare).abs().max())
    return moved


def predict(base) -> torch.Tensor:
    from lora_trainer.core.contracts import Conditioning
    latents, timesteps, context = (each.to(base.device) for each in inputs())
    with torch.no_grad():
        return base.predict(latents, timesteps, Conditioning(context)).cpu()


def covers(base, targets: str, tensors: dict) -> bool:
    from lora_trainer.core.adapters import target_paths
    return {base.export_name(path) for path in target_paths(base.unet, targets)} == {key.split(".", 1)[0] for key in tensors}


def unmatched(name: str) -> list:
    """Names of the file's modules that the built-in loader found no layer for."""
    on_disk = networks().available_networks[name]
    found = {module.network_key.split(".", 1)[0] for module in networks().load_network(name, on_disk).modules.values()}
    return sorted({key.split(".", 1)[0] for key in safe_open(on_disk.filename, "pt").keys()} - found)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def in_thread(function):
    """Run as a job does, in a thread of its own; give back what it returns or raise what it raises."""
    outcome = {}

    def run():
        try:
            outcome["value"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


def fail_in_the_middle() -> dict:
    """Raise from inside a forward pass, adapters attached, gradient checkpointing on, nothing tidied up by the trainer itself."""
    from lora_trainer.core.adapters import Adapters, plan_shapes
    from lora_trainer.core.contracts import Conditioning
    from lora_trainer.core.precision import gradient_checkpointing
    before = state()

    def run():
        with host().borrow_model() as base:
            adapters = Adapters.create(base.unet, plan_shapes(base.unet, targets="all", rank=2, alpha=2), dropout=0.1, seed=0)
            adapters.attach()
            gradient_checkpointing(base.unet, True).__enter__()
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
    """Compare the host's encoding with the WebUI's own for a plain caption, and with its posterior mean for a picture."""
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    with call_queue.queue_lock, torch.no_grad(), devices.autocast():
        theirs = shared.sd_model.get_learned_conditioning([caption]).float().cpu()
        mean = shared.sd_model.first_stage_model.encode(pixels.to(devices.device, devices.dtype_vae)).mean.float().cpu() * shared.sd_model.scale_factor
    comments, before = list(sd_hijack.model_hijack.comments), dict(sd_hijack.model_hijack.extra_generation_params)
    from lora_trainer.core.contracts import Size
    with host().borrow_model() as base:
        ours = base.encode_captions([caption], [Size(64, 64, 0, 0, 64, 64)]).hidden_states.cpu()
        latents = base.encode_images(pixels).cpu()
    return {"shape": list(ours.shape), "same_shape": ours.shape == theirs.shape, "caption_difference": difference(ours, theirs) if ours.shape == theirs.shape else None,
            "dtype": str(ours.dtype), "requires_grad": ours.requires_grad or latents.requires_grad, "picture_difference": difference(latents, mean),
            "untouched": comments == sd_hijack.model_hijack.comments and before == sd_hijack.model_hijack.extra_generation_params}


def refusals() -> dict:
    """Pretend that settings are others, and collect what the host says."""
    from lora_trainer.hosts import webui
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
    ask("inpainting", model.model.diffusion_model, "in_channels", 9)
    ask("another family", model, "is_sd1", False)
    ask("another text encoder", model, "cond_stage_model", torch.nn.Module())
    said["none"] = webui.status_of(None).reason
    return said


def guard(api_auth: str | None, login: bool) -> dict:
    """Say whom the guard lets in, with --api-auth as given and a login of gradio's or none."""
    from fastapi import HTTPException
    from lora_trainer.hosts import webui_guard
    app = type("App", (), {"auth": {"user": "word"} if login else None, "tokens": {"good": "user"}})()
    before, shared.cmd_opts.api_auth = shared.cmd_opts.api_auth, api_auth
    try:
        ask = webui_guard.make_guard(app)
    finally:
        shared.cmd_opts.api_auth = before
    headers = {"nobody": [], "cookie": [(b"cookie", b"access-token=good")], "wrong cookie": [(b"cookie", b"access-token-unsecure=bad")],
               "basic": [(b"authorization", b"Basic dTpwOnc=")], "wrong basic": [(b"authorization", b"Basic dTpwOng=")], "nonsense": [(b"authorization", b"Basic \xff%%")]}
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
            ui = next(cell.cell_contents for cell in function.fn.__closure__ if hasattr(cell.cell_contents, "pages_contents"))
            pages[ui.tabname] = "".join(function.fn())
    return {tab: [name for name in networks().available_networks if f'data-name="{name}"' in html] for tab, html in pages.items()}


WAITS: list = []


def steps_done() -> int:
    from lora_trainer.hosts import webui
    job = webui.training_service().current_job()
    return (job or {}).get("step") or 0


def record_waits() -> None:
    """Note for everybody but the trainer how long they waited for the queue's lock, and how many steps were finished meanwhile."""
    kind = type(call_queue.queue_lock)
    if hasattr(kind, "unrecorded"):
        return
    kind.unrecorded = kind.acquire

    def acquire(self, blocking=True):
        if threading.current_thread().name.startswith("train-lora"):
            return self.unrecorded(blocking)
        asked_at, asked_step = time.perf_counter(), steps_done()
        got = self.unrecorded(blocking)
        WAITS.append({"seconds": time.perf_counter() - asked_at, "steps": steps_done() - asked_step})
        return got
    kind.acquire = kind.__enter__ = acquire


def read_waits() -> list:
    found = list(WAITS)
    WAITS.clear()
    return found


BUSY: list = []


def keep_busy(threads: int) -> None:
    """Let threads compute in Python, as other extensions may, so that who is woken does not run at once."""
    while BUSY:
        BUSY.pop().set()
    for _ in range(threads):
        over = threading.Event()
        BUSY.append(over)
        threading.Thread(target=lambda over=over: [sum(range(1000)) for _ in iter(over.is_set, True)], daemon=True).start()


MOVES: list = []


def record_moves() -> None:
    """Note whether the WebUI moves the model while a step has it."""
    from modules import sd_models
    if hasattr(sd_models, "unrecorded_move"):
        return
    sd_models.unrecorded_move = sd_models.send_model_to_cpu

    def move(model):
        MOVES.append(host()._turn_of is not None)
        return sd_models.unrecorded_move(model)
    sd_models.send_model_to_cpu = move


def same_config(on: bool) -> None:
    """Let all checkpoints have the loaded one's config, so that another is loaded into the same objects; the real thing needs gigabytes."""
    from modules import sd_models_config
    if not hasattr(sd_models_config, "unpatched"):
        sd_models_config.unpatched = sd_models_config.find_checkpoint_config
    loaded = shared.sd_model.used_config
    sd_models_config.find_checkpoint_config = (lambda state_dict, info: loaded) if on else sd_models_config.unpatched


def on_app_started(demo, app):
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
        from lora_trainer.hosts.webui_model import LdmModel
        if not hasattr(LdmModel, "unfailing"):
            LdmModel.unfailing = LdmModel.predict
        left = [body["times"]]

        def predict(self, *args):
            if left[0] > 0:
                left[0] -= 1
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return self.unfailing(*args)
        LdmModel.predict = predict

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
        return {"effect": difference(theirs, bare), "difference": difference(in_thread(lambda: predict_with_trainer(path)), theirs),
                "start_differences": in_thread(differences_at_start), "unmatched": unmatched(name)}

    @app.post("/probe/generate")
    def _generate(body: dict = Body(...)):
        picture = in_thread(lambda: host().generate(**body))
        return {"size": list(picture.size), "pixels": digest(picture.tobytes())}

    @app.post("/probe/generate-while-lent")
    def _generate_while_lent(body: dict = Body(...)):
        def run():
            with host().borrow_model() as base:
                picture = host().generate(**body)
                names = [name for name, module in base.unet.named_modules() if getattr(module, "network_current_names", ())]
                return {"pixels": digest(picture.tobytes()), "left": names}
        return in_thread(run)


script_callbacks.on_app_started(on_app_started)
