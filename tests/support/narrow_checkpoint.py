"""Random checkpoints of every family in the WebUI's own layout, tens of megabytes each, made from
diffusers' models.

`write_family` writes `<name>.safetensors` with LDM's, sgm's and open_clip's key names, the `.yaml`
with which a running WebUI builds the same classes as for the true ones, and the tokenizer folder
that the `.yaml` names. Widths of UNet, VAE and the HF text encoder are small; the OpenCLIP text
encoder is open_clip's smallest, ViT-S-32-alt, because the WebUI builds it by name.

A WebUI draws with SDXL without a download when its option `show_progress_type` is "Approx cheap".
"""

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from lora_trainer.demo.checkpoint import TEXT_ENCODER_CONFIG, write_tokenizer
from lora_trainer.demo.vae_names import vae_to_ldm
from lora_trainer.lora.weight_names import SDXL_LEVELS, unet_to_ldm

CLIP_WIDTH, CLIP_LAYERS = (
    TEXT_ENCODER_CONFIG["hidden_size"],
    TEXT_ENCODER_CONFIG["num_hidden_layers"],
)
OPEN_CLIP, OPEN_CLIP_WIDTH, OPEN_CLIP_LAYERS = "ViT-S-32-alt", 256, 10
VOCABULARY, TOKENS = 49_408, 77
VAE_WIDTH, SIZE_PX = 32, 64
HEAD_WIDTH, SD1_HEADS, NUMBER_WIDTH = (
    64,
    8,
    256,
)  # NUMBER_WIDTH: of each of SDXL's sizes in `label_emb`
SD1, SD2, SDXL, REFINER = "sd1", "sd2", "sdxl", "sdxl-refiner"


@dataclasses.dataclass(frozen=True)
class Family:
    """What tells the checkpoints apart; `depths` are the transformer layers per level, 0 where a
    level has no attention.
    """

    base: str
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    channels: int = 4
    v_prediction: bool = False  # as the .yaml says it
    extra_keys: tuple[str, ...] = ()
    ssd_1b: bool = False


SD1_LIKE, SD2_LIKE = (
    dict(base=SD1, widths=(32, 32, 64, 64), depths=(1, 1, 1, 0)),
    dict(base=SD2, widths=(64, 64, 128, 128), depths=(1, 1, 1, 0)),
)
SDXL_LIKE = dict(base=SDXL, widths=(32, 64, 128), depths=(0, 1, 2))
FAMILIES = {
    "sd1": Family(**SD1_LIKE),
    "sd1-inpainting": Family(**SD1_LIKE, channels=9),
    "sd2": Family(**SD2_LIKE),
    "sd2-v": Family(**SD2_LIKE, v_prediction=True),
    "sd2-inpainting": Family(**SD2_LIKE, channels=9),
    "sdxl": Family(SDXL, widths=(32, 64, 64), depths=(0, 2, 10)),
    "sdxl-v": Family(**SDXL_LIKE, extra_keys=("v_pred", "ztsnr")),
    "sdxl-inpainting": Family(**SDXL_LIKE, channels=9),
    "ssd-1b": Family(SDXL, widths=(32, 64, 64), depths=(0, 2, 10), ssd_1b=True),
    "sdxl-refiner": Family(REFINER, widths=(32, 64, 64, 64), depths=(0, 4, 4, 0)),
}


def write_family(name: str, folder: Path, stem: str | None = None, *, seed: int = 0) -> Path:
    """Write the checkpoint of this family (see `FAMILIES`) as `<stem or name>.safetensors` with its
    `.yaml`; return its path.
    """
    family, folder = FAMILIES[name], Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(folder / "narrow-clip")
    path = folder / f"{stem or name}.safetensors"
    path.with_suffix(".yaml").write_text(
        yaml.safe_dump(webui_config(family, str(tokenizer)), allow_unicode=True), encoding="utf-8"
    )
    state = {
        key: value.to(torch.float16).contiguous()
        for key, value in make_state(family, seed=seed + zlib.crc32(name.encode())).items()
    }
    save_file(
        state, str(path), metadata={"format": "pt", "modelspec.resolution": f"{SIZE_PX}x{SIZE_PX}"}
    )
    return path


def make_state(family: Family, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random weights under the names that a WebUI checkpoint of this family has, float32."""
    draws = torch.Generator().manual_seed(seed)
    levels, text = (
        len(family.widths),
        {
            SD1: "cond_stage_model.transformer.",
            SD2: "cond_stage_model.model.",
        },
    )
    state = {
        f"model.diffusion_model.{unet_to_ldm(key, levels)}": value
        for key, value in _random(make_unet(family), draws).items()
    }
    for key, value in _random(make_vae(), draws).items():
        name = vae_to_ldm(key)
        is_attention = ".mid.attn_1." in name and value.ndim == 2
        state["first_stage_model." + name] = value[:, :, None, None] if is_attention else value
    if family.base in (SD1, SDXL):
        state |= _prefixed(
            text.get(family.base, "conditioner.embedders.0.transformer."), make_clip(draws)
        )
    if family.base != SD1:
        state |= _prefixed(
            text.get(
                family.base, f"conditioner.embedders.{0 if family.base == REFINER else 1}.model."
            ),
            make_open_clip(draws),
        )
    return state | {key: torch.zeros(0) for key in family.extra_keys}


def make_unet(family: Family):
    """Build diffusers' UNet of this family, freshly initialised."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**unet_config(family))


def unet_config(family: Family) -> dict[str, Any]:
    """What diffusers has to be told to build this UNet; written here by itself, for the host finds
    the same from the header.
    """
    attention, levels = [depth > 0 for depth in family.depths], len(family.widths)
    config: dict[str, Any] = dict(
        sample_size=SIZE_PX // 8,
        in_channels=family.channels,
        block_out_channels=family.widths,
        cross_attention_dim=context_width(family),
        down_block_types=["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attention],
        up_block_types=[
            "CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attention)
        ],
    )
    if family.base == SD1:
        return config | dict(attention_head_dim=SD1_HEADS)
    config |= dict(
        attention_head_dim=[max(1, width // HEAD_WIDTH) for width in family.widths],
        use_linear_projection=True,
    )
    if family.base == SD2:
        return config
    config |= dict(
        transformer_layers_per_block=[depth or 1 for depth in family.depths],
        addition_embed_type="text_time",
        addition_time_embed_dim=NUMBER_WIDTH,
        projection_class_embeddings_input_dim=label_width(family),
    )
    if family.ssd_1b:
        config |= dict(
            transformer_layers_per_block=[1, [2, 2], [4, 4]],
            reverse_transformer_layers_per_block=[[4, 4, 10], [2, 1, 1], 1],
            mid_block_type="UNetMidBlock2D",
        )
    return config if levels == SDXL_LEVELS else config | dict(transformer_layers_per_block=4)


def context_width(family: Family) -> int:
    return {
        SD1: CLIP_WIDTH,
        SD2: OPEN_CLIP_WIDTH,
        SDXL: CLIP_WIDTH + OPEN_CLIP_WIDTH,
        REFINER: OPEN_CLIP_WIDTH,
    }[family.base]


def label_width(family: Family) -> int:
    return OPEN_CLIP_WIDTH + NUMBER_WIDTH * (5 if family.base == REFINER else 6)


def make_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(VAE_WIDTH,) * 4,
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


def make_clip(draws: torch.Generator) -> dict[str, torch.Tensor]:
    """Return random weights of an HF `CLIPTextModel` under its names in a checkpoint."""
    inner, state = TEXT_ENCODER_CONFIG["intermediate_size"], {}
    state["embeddings.position_ids"] = torch.arange(TOKENS, dtype=torch.float32)[None]
    state["embeddings.token_embedding.weight"] = torch.randn(
        VOCABULARY, CLIP_WIDTH, generator=draws
    )
    state["embeddings.position_embedding.weight"] = 0.3 * torch.randn(
        TOKENS, CLIP_WIDTH, generator=draws
    )
    for number in range(CLIP_LAYERS):
        layer = f"encoder.layers.{number}"
        state |= _norm(f"{layer}.layer_norm1", CLIP_WIDTH, draws) | _norm(
            f"{layer}.layer_norm2", CLIP_WIDTH, draws
        )
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            state |= _linear(f"{layer}.self_attn.{name}", CLIP_WIDTH, CLIP_WIDTH, draws)
        state |= _linear(f"{layer}.mlp.fc1", CLIP_WIDTH, inner, draws) | _linear(
            f"{layer}.mlp.fc2", inner, CLIP_WIDTH, draws
        )
    return _prefixed("text_model.", state | _norm("final_layer_norm", CLIP_WIDTH, draws))


def make_open_clip(draws: torch.Generator) -> dict[str, torch.Tensor]:
    """Return random weights of open_clip's text tower under its names in a checkpoint, which has no
    visual tower.
    """
    width = OPEN_CLIP_WIDTH
    state = {
        "token_embedding.weight": torch.randn(VOCABULARY, width, generator=draws),
        "logit_scale": torch.tensor(4.6),
        "positional_embedding": 0.3 * torch.randn(TOKENS, width, generator=draws),
        "text_projection": torch.randn(width, width, generator=draws) * width**-0.5,
    }
    for number in range(OPEN_CLIP_LAYERS):
        block = f"transformer.resblocks.{number}"
        state |= _norm(f"{block}.ln_1", width, draws) | _norm(f"{block}.ln_2", width, draws)
        stacked = _linear("in_proj", width, 3 * width, draws)
        state |= {
            f"{block}.attn.in_proj_weight": stacked["in_proj.weight"],
            f"{block}.attn.in_proj_bias": stacked["in_proj.bias"],
        }
        state |= _linear(f"{block}.attn.out_proj", width, width, draws)
        state |= _linear(f"{block}.mlp.c_fc", width, 4 * width, draws) | _linear(
            f"{block}.mlp.c_proj", 4 * width, width, draws
        )
    return state | _norm("ln_final", width, draws)


def webui_config(family: Family, tokenizer: str) -> dict[str, Any]:
    """Return what the WebUI's own configuration of this family says, with these widths."""
    if family.base in (SD1, SD2):
        return {"model": _ldm_config(family, tokenizer)}
    return {"model": _sgm_config(family, tokenizer)}


def _ldm_config(family: Family, tokenizer: str) -> dict[str, Any]:
    first, inpainting = family.widths[0], family.channels == 9
    heads = (
        dict(num_heads=SD1_HEADS)
        if family.base == SD1
        else dict(num_head_channels=HEAD_WIDTH, use_linear_in_transformer=True)
    )
    text = (
        _target("ldm.modules.encoders.modules.FrozenCLIPEmbedder", version=tokenizer)
        if family.base == SD1
        else _target(
            "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
            arch=OPEN_CLIP,
            freeze=True,
            layer="penultimate",
        )
    )
    return _target(
        "ldm.models.diffusion.ddpm."
        + ("LatentInpaintDiffusion" if inpainting else "LatentDiffusion"),
        **(dict(parameterization="v") if family.v_prediction else {}),
        **(dict(finetune_keys=None) if inpainting else {}),
        linear_start=0.00085,
        linear_end=0.012,
        num_timesteps_cond=1,
        log_every_t=200,
        timesteps=1000,
        first_stage_key="jpg",
        cond_stage_key="txt",
        image_size=SIZE_PX // 8,
        channels=4,
        cond_stage_trainable=False,
        conditioning_key="hybrid" if inpainting else "crossattn",
        monitor="val/loss_simple_ema",
        scale_factor=0.18215,
        use_ema=False,
        unet_config=_target(
            "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            image_size=32,
            in_channels=family.channels,
            out_channels=4,
            model_channels=first,
            attention_resolutions=[4, 2, 1],
            num_res_blocks=2,
            channel_mult=_multiples(family),
            **heads,
            use_spatial_transformer=True,
            transformer_depth=1,
            context_dim=context_width(family),
            use_checkpoint=False,
            legacy=False,
        ),
        first_stage_config=_target("ldm.models.autoencoder.AutoencoderKL", **_vae_params()),
        cond_stage_config=text,
    )


def _sgm_config(family: Family, tokenizer: str) -> dict[str, Any]:
    diffusion, encoders = "sgm.modules.diffusionmodules.", "sgm.modules.encoders.modules."
    clip = _target(
        encoders + "FrozenCLIPEmbedder",
        version=tokenizer,
        layer="hidden",
        layer_idx=CLIP_LAYERS - 1,
    )
    open_clip = _target(
        encoders + "FrozenOpenCLIPEmbedder2",
        arch=OPEN_CLIP,
        freeze=True,
        layer="penultimate",
        always_return_pooled=True,
        legacy=False,
    )
    texts = [open_clip] if family.base == REFINER else [clip, open_clip]
    numbers = [
        "original_size_as_tuple",
        "crop_coords_top_left",
        "aesthetic_score" if family.base == REFINER else "target_size_as_tuple",
    ]
    embedders = [dict(is_trainable=False, input_key="txt", **text) for text in texts]
    embedders += [
        dict(
            is_trainable=False,
            input_key=key,
            **_target(encoders + "ConcatTimestepEmbedderND", outdim=NUMBER_WIDTH),
        )
        for key in numbers
    ]
    return _target(
        "sgm.models.diffusion.DiffusionEngine",
        scale_factor=0.13025,
        disable_first_stage_autocast=True,
        denoiser_config=_target(
            diffusion + "denoiser.DiscreteDenoiser",
            num_idx=1000,
            weighting_config=_target(diffusion + "denoiser_weighting.EpsWeighting"),
            scaling_config=_target(
                diffusion
                + "denoiser_scaling."
                + ("VScaling" if family.v_prediction else "EpsScaling")
            ),
            discretization_config=_target(diffusion + "discretizer.LegacyDDPMDiscretization"),
        ),
        network_config=_target(
            diffusion + "openaimodel.UNetModel",
            adm_in_channels=label_width(family),
            num_classes="sequential",
            use_checkpoint=False,
            in_channels=family.channels,
            out_channels=4,
            model_channels=family.widths[0],
            attention_resolutions=[4, 2],
            num_res_blocks=2,
            channel_mult=_multiples(family),
            num_head_channels=HEAD_WIDTH,
            use_spatial_transformer=True,
            use_linear_in_transformer=True,
            context_dim=context_width(family),
            spatial_transformer_attn_type="softmax-xformers",
            transformer_depth=(
                4 if family.base == REFINER else [depth or 1 for depth in family.depths]
            ),
            legacy=False,
        ),
        conditioner_config=_target("sgm.modules.GeneralConditioner", emb_models=embedders),
        first_stage_config=_target(
            "sgm.models.autoencoder.AutoencoderKLInferenceWrapper",
            **_vae_params(attn_type="vanilla-xformers"),
        ),
    )


def _vae_params(**more: Any) -> dict[str, Any]:
    return dict(
        embed_dim=4,
        monitor="val/rec_loss",
        lossconfig=dict(target="torch.nn.Identity"),
        ddconfig=dict(
            more,
            double_z=True,
            z_channels=4,
            resolution=SIZE_PX,
            in_channels=3,
            out_ch=3,
            ch=VAE_WIDTH,
            ch_mult=[1, 1, 1, 1],
            num_res_blocks=2,
            attn_resolutions=[],
            dropout=0.0,
        ),
    )


def _target(target: str, **params: Any) -> dict[str, Any]:
    return {"target": target, "params": params} if params else {"target": target}


def _multiples(family: Family) -> list[int]:
    return [width // family.widths[0] for width in family.widths]


def _prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def _random(module: torch.nn.Module, draws: torch.Generator) -> dict[str, torch.Tensor]:
    """Fill a model's weights: norms near 1, biases near 0, the rest scaled by what goes in, so that
    signals neither vanish nor grow.
    """
    state = {}
    for key, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=draws)
        if value.ndim == 1:
            state[key] = 0.1 * noise + (1 if key.endswith("weight") else 0)
        else:
            state[key] = noise * value[0].numel() ** -0.5
    return state


def _linear(
    name: str, inputs: int, outputs: int, draws: torch.Generator
) -> dict[str, torch.Tensor]:
    return {
        f"{name}.weight": torch.randn(outputs, inputs, generator=draws) * inputs**-0.5,
        f"{name}.bias": 0.1 * torch.randn(outputs, generator=draws),
    }


def _norm(name: str, width: int, draws: torch.Generator) -> dict[str, torch.Tensor]:
    """LayerNorms away from 1 and 0: the WebUI divides by the mean of an encoding, which would be 0
    otherwise.
    """
    return {
        f"{name}.weight": 1 + 0.2 * torch.randn(width, generator=draws),
        f"{name}.bias": 0.2 + 0.2 * torch.randn(width, generator=draws),
    }
