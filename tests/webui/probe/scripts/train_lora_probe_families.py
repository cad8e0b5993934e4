"""For tests only: routes that hold what training does with the loaded checkpoint, of whatever
family, against what the WebUI does with it.
"""

import contextlib
from collections import Counter
from pathlib import Path

import ldm.modules.distributions.distributions
import sgm.modules.distributions.distributions
import torch
from fastapi import Body
from modules import call_queue, devices, processing, prompt_parser, script_callbacks, shared
from safetensors.torch import save_file
from train_lora_probing import difference, host, in_thread, networks, state, unmatched

SIDE, COUNT, TIMESTEPS = (
    128,
    2,
    (10, 900),
)  # in pictures of 64 pixels the deepest maps are 1x1, whose rounding changes with what is added


@contextlib.contextmanager
def posterior_means():
    """The WebUI draws from what the VAE says of a picture; the trainer takes its mean."""
    kinds = (
        ldm.modules.distributions.distributions.DiagonalGaussianDistribution,
        sgm.modules.distributions.distributions.DiagonalGaussianDistribution,
    )
    before = [kind.sample for kind in kinds]
    try:
        for kind in kinds:
            kind.sample = lambda self: self.mean
        yield
    finally:
        for kind, sample in zip(kinds, before):
            kind.sample = sample


@contextlib.contextmanager
def option(name: str, value):
    before = dict(shared.opts.data)
    shared.opts.data[name] = value
    try:
        yield
    finally:
        if name in before:
            shared.opts.data[name] = before[name]
        else:
            del shared.opts.data[name]


def latents_and_timesteps() -> tuple:
    return torch.randn(
        COUNT, 4, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(7)
    ), torch.tensor(TIMESTEPS)


def webui_conditioning(captions: list):
    return shared.sd_model.get_learned_conditioning(
        prompt_parser.SdConditioning(captions, width=SIDE, height=SIDE)
    )


def webui_prediction(captions: list, names: list) -> torch.Tensor:
    """Predict as a picture would: prompts, LoRA files through the built-in loader at weight 1, what
    an inpainting model is told in txt2img.
    """
    model, (latents, timesteps) = shared.sd_model, latents_and_timesteps()
    latents, timesteps = latents.to(devices.device), timesteps.to(devices.device)
    with call_queue.queue_lock, torch.no_grad(), devices.autocast(), posterior_means():
        networks().load_networks(names, [1.0] * len(names), [1.0] * len(names), [None] * len(names))
        try:
            told = webui_conditioning(captions)
            painted = processing.txt2img_image_conditioning(model, latents, SIDE, SIDE)
            told = (
                {**told, "c_concat": [painted]}
                if isinstance(told, dict)
                else {"c_crossattn": [told], "c_concat": [painted]}
            )
            return model.apply_model(latents, timesteps, told).float().cpu()
        finally:
            networks().load_networks([], [], [], [])


def prediction(base, captions: list) -> torch.Tensor:
    from lora_trainer.base.contracts import Size

    latents, timesteps = (each.to(base.device) for each in latents_and_timesteps())
    with torch.no_grad():
        told = base.encode_captions(captions).of_sizes(
            [Size(SIDE, SIDE, 0, 0, SIDE, SIDE)] * len(captions)
        )
        return base.predict(latents, timesteps, told).cpu()


def encoding_differences(captions: list, weighted: bool, clip_skip: int, clip_l_skip: bool) -> dict:
    """How far captions as the trainer encodes them are from the same as prompts, each alone;
    relative.
    """
    from lora_trainer.base.contracts import ModelOptions

    found = {}
    with (
        option("CLIP_stop_at_last_layers", clip_skip or 1),
        option("sdxl_clip_l_skip", clip_l_skip),
    ):
        with call_queue.queue_lock, torch.no_grad(), devices.autocast():
            theirs = [webui_conditioning([caption]) for caption in captions]
    with option("sdxl_clip_l_skip", clip_l_skip), host().borrow_model() as base, torch.no_grad():
        base.configure(ModelOptions(clip_skip=clip_skip, weighted_captions=weighted))
        for caption, prompt in zip(captions, theirs):
            ours = base.encode_captions([caption])
            if not isinstance(prompt, dict):
                prompt = {"crossattn": prompt}
            assert ours.hidden_states.shape == prompt["crossattn"].shape, (
                ours.hidden_states.shape,
                prompt["crossattn"].shape,
            )
            found[caption[:20]] = difference(ours.hidden_states.cpu(), prompt["crossattn"].cpu())
            if "vector" in prompt:
                told = base._extra_inputs(ours.of_sizes([_size()])).cpu()
                found[caption[:20] + " (pooled and sizes)"] = difference(
                    told, prompt["vector"].float().cpu()
                )
        together = base.encode_captions(captions)
        found["tokens together"] = list(together.hidden_states.shape)
    return found


def _size():
    from lora_trainer.base.contracts import Size

    return Size(SIDE, SIDE, shared.opts.sdxl_crop_left, shared.opts.sdxl_crop_top, SIDE, SIDE)


def write_random_lora(
    path: Path, captions: list, *, kind: str, targets: str, text_encoder: bool, unet: bool = True
) -> dict:
    """Write a LoRA file with random weights, as the trainer's adapters would; say what the
    prediction is before, with them new, and with these weights.
    """
    from lora_trainer.lora import save
    from lora_trainer.lora.adapter_layers import AdapterSpec
    from lora_trainer.lora.adapters import Adapters
    from lora_trainer.lora.target_layers import LayerSettings, assign_ranks

    with host().borrow_model() as base:
        bare = prediction(base, captions)
        shapes = assign_ranks(
            base.parts(),
            LayerSettings(targets=targets, rank=4, alpha=2.0, unet=unet, text_encoder=text_encoder),
        )
        adapters = Adapters.create(base.parts(), shapes, AdapterSpec(kind=kind))
        with adapters.attached():
            start = prediction(base, captions)
        draws, strength = (
            torch.Generator().manual_seed(5),
            (1.2 if kind == "loha" else 0.3),
        )  # of four factors, not two
        with torch.no_grad():
            for parameter in adapters.parameters():
                parameter.copy_(
                    torch.randn(parameter.shape, generator=draws)
                    * strength
                    * (parameter[0].numel() ** -0.5)
                )
        with adapters.attached():
            changed = prediction(base, captions)
        tensors = save.to_tensors(
            adapters.weights(),
            alphas=adapters.alphas,
            export_name=base.export_name,
            dtype=torch.float32,
        )
        save_file(tensors, str(path), metadata={"ss_output_name": path.stem})
        groups = dict(
            Counter(
                "unet" if path.startswith("unet.") else "text_encoder"
                for path, weights in adapters.weights().items()
                for _ in weights
            )
        )
    return {"bare": bare, "start": start, "changed": changed, "groups": groups}


def same_lora(name: str, captions: list, **how) -> dict:
    """Hold the trainer's adapters against the WebUI's loader for the same file, from captions to
    prediction.
    """
    from lora_trainer.hosts.webui.loras import forget_lora, list_again

    path = Path(shared.cmd_opts.lora_dir) / f"{name}.safetensors"
    before = state()
    ours = in_thread(lambda: write_random_lora(path, captions, **how))
    after = state()
    forget_lora(path)
    list_again()
    plain, theirs = webui_prediction(captions, []), webui_prediction(captions, [name])
    with torch.no_grad():
        webui_prediction(captions, [])
    return {
        "start": float((ours["start"] - ours["bare"]).abs().max()),
        "bare": difference(ours["bare"], plain),
        "effect": difference(theirs, plain),
        "difference": difference(ours["changed"], theirs),
        "unmatched": unmatched(name),
        "groups": ours["groups"],
        "touched": [key for key in before if before[key] != after[key]],
    }


def gradients(captions: list) -> dict:
    """Say which layers of adapters on everything get no gradient, and how far those with gradient
    checkpointing and without are apart.
    """
    from lora_trainer.lora.adapters import Adapters
    from lora_trainer.lora.target_layers import LayerSettings, assign_ranks
    from lora_trainer.training.precision import gradient_checkpointing

    found = []
    with host().borrow_model() as base:
        shapes = assign_ranks(
            base.parts(),
            LayerSettings(targets="attention+feed-forward", rank=2, alpha=2.0, text_encoder=True),
        )
        adapters = Adapters.create(base.parts(), shapes)
        with torch.no_grad():
            for number, parameter in enumerate(adapters.parameters()):
                parameter.copy_(
                    0.1
                    * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
                )
        for enabled in (False, True):
            with adapters.attached(), gradient_checkpointing(base.parts(), enabled):
                latents, timesteps = (each.to(base.device) for each in latents_and_timesteps())
                told = base.encode_captions(captions).of_sizes([_size()] * len(captions))
                base.predict(latents, timesteps, told).square().mean().backward()
            found.append(
                [
                    None if parameter.grad is None else parameter.grad.clone()
                    for parameter in adapters.parameters()
                ]
            )
            for parameter in adapters.parameters():
                parameter.grad = None
        untouched = all(
            parameter.grad is None
            for part in base.parts().values()
            for parameter in part.parameters()
        )
    without, with_it = found
    silent = [
        path
        for path, *pair in zip(shapes, without[::2], without[1::2])
        if any(gradient is None or not gradient.any() for gradient in pair)
    ]
    pairs = [(one, other) for one, other in zip(with_it, without) if one is not None]
    return {
        "silent": silent,
        "difference": difference(
            *(torch.cat([each.flatten() for each in side]) for side in zip(*pairs))
        ),
        "same_silent": [each is None for each in without] == [each is None for each in with_it],
        "untouched": untouched,
    }


def counted_while_attached() -> dict:
    """Count what would learn, as a plan does: before the model is lent, and while adapters are in
    it.
    """
    from lora_trainer.lora.adapter_layers import AdapterSpec
    from lora_trainer.lora.adapters import Adapters, count_parameters
    from lora_trainer.lora.target_layers import LayerSettings, assign_ranks

    choice = LayerSettings(targets="all", rank=2, alpha=2.0, text_encoder=True)

    def count():
        parts = host().loaded_parts()
        return count_parameters(parts, assign_ranks(parts, choice), AdapterSpec())

    before = count()
    with host().borrow_model() as base:
        with Adapters.create(base.parts(), assign_ranks(base.parts(), choice)).attached():
            return {"before": before, "while": count()}


def configure(reading: dict) -> dict:
    """Say how a model is taken, or why it is refused."""
    from lora_trainer.base.contracts import ModelOptions
    from lora_trainer.base.errors import Refused

    with host().borrow_model() as base:
        try:
            base.configure(ModelOptions(**reading))
        except Refused as error:
            return {"refused": error.message, "field": error.field}
        return {
            "prediction_type": base.prediction_type,
            "zero_terminal_snr": base.zero_terminal_snr,
            "clip_skip": base.clip_skip,
            "last": float(base.alphas_cumprod[-1]),
            "first": float(base.alphas_cumprod[0]),
        }


def pictures_in_halves() -> dict:
    """Encode a picture with the VAE held in 16 bits: how far from float32, and whether its tensors
    are the same objects in the same places afterwards.
    """
    vae, pixels = (
        shared.sd_model.first_stage_model,
        torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1,
    )

    def places():
        return [
            (id(parameter), parameter.data_ptr(), str(parameter.dtype))
            for parameter in vae.parameters()
        ]

    with call_queue.queue_lock, torch.no_grad(), posterior_means():
        kept = [(parameter, parameter.data) for parameter in vae.parameters()]
        exact = vae.encode(pixels.to(devices.device))
        exact = (
            exact if isinstance(exact, torch.Tensor) else exact.mean
        ) * shared.sd_model.scale_factor
        vae.half()
    try:
        before = places()
        with host().borrow_model() as base:
            ours = base.encode_images(pixels)
        return {
            "difference": difference(ours.cpu(), exact.cpu()),
            "dtype": str(ours.dtype),
            "untouched": before == places(),
        }
    finally:
        for parameter, data in kept:
            parameter.data = data
        vae.float()  # changes no tensor; the module keeps a note of its type, which half() wrote


def medvram_moves() -> dict:
    """Say which part of the model the WebUI's books have on the GPU after each thing that training
    does.
    """
    from modules import lowvram

    def where():
        model = shared.sd_model
        names = {
            id(model.model): "unet",
            id(model.first_stage_model): "vae",
            id(model.cond_stage_model): "text",
            id(getattr(model.cond_stage_model, "wrapped", None)): "text",
        }
        return names.get(id(lowvram.module_in_gpu), str(type(lowvram.module_in_gpu).__name__))

    seen = {}
    with host().borrow_model() as base:
        seen["encodes_between_steps"] = base.encodes_between_steps
        with torch.no_grad():
            base.encode_images(torch.zeros(1, 3, 64, 64))
            seen["encode_images"] = where()
            base.encode_captions(["a circle"])
            seen["encode_captions"] = where()
            base.parts()
            seen["parts"] = where()
            base.encode_captions(["a circle"])
        prediction_after = prediction(base, ["a circle"] * COUNT)
        seen["predict"], seen["finite"] = where(), bool(torch.isfinite(prediction_after).all())
    return seen


def on_app_started(demo, app):
    @app.post("/probe/encoding-differences")
    def _encoding_differences(body: dict = Body(...)):
        return in_thread(
            lambda: encoding_differences(
                body["captions"], body["weighted"], body["clip_skip"], body["clip_l_skip"]
            )
        )

    @app.post("/probe/same-lora")
    def _same_lora(body: dict = Body(...)):
        return same_lora(**body)

    @app.post("/probe/gradients")
    def _gradients(body: dict = Body(...)):
        return in_thread(lambda: gradients(body["captions"]))

    @app.post("/probe/read-as")
    def _read_as(body: dict = Body(...)):
        return in_thread(lambda: configure(body))

    @app.post("/probe/medvram")
    def _medvram(body: dict = Body(...)):
        """From now on load checkpoints as if the WebUI had been started with --medvram, or
        without.
        """
        from modules import lowvram

        shared.cmd_opts.medvram = body["on"]
        lowvram.module_in_gpu = None

    app.add_api_route("/probe/counted", lambda: in_thread(counted_while_attached), methods=["GET"])
    app.add_api_route(
        "/probe/pictures-in-halves", lambda: in_thread(pictures_in_halves), methods=["GET"]
    )
    app.add_api_route("/probe/medvram-moves", lambda: in_thread(medvram_moves), methods=["GET"])


script_callbacks.on_app_started(on_app_started)
