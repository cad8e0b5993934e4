"""Models with adapters, and what a file of theirs does to a model."""

import torch

from lora_trainer.lora.target_layers import LayerSettings, assign_ranks

BLOCK = "unet.input_blocks.1.1.transformer_blocks.0"


ATTENTION = "te2.transformer.resblocks.0.attn"


def everything(parts, rank=2, alpha=3.0, targets="all"):
    return assign_ranks(parts, LayerSettings(targets, rank, alpha, text_encoder=True))


def outputs(parts):
    draws = torch.Generator().manual_seed(1)
    texts = torch.randn(2, 77, 12, generator=draws)
    return (
        parts["unet"](torch.randn(2, 4, 8, 8, generator=draws), torch.tensor([10, 900]), texts),
        parts["te1"](texts),
        parts["te2"](texts),
    )


def scramble(adapters, size=0.3):
    """Give every weight a number, so that nothing is zero."""
    with torch.no_grad():
        for number, parameter in enumerate(adapters.parameters()):
            parameter.copy_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * size
            )
        for layer in adapters._layers.values():
            if layer.dora_scale is not None:
                layer.dora_scale.abs_().add_(0.1)
    return adapters


def change_in_file(weights, alpha, size):
    """The change of a weight as the WebUI's loader computes it from a file's tensors, written anew
    in numbers of one axis each (kron as an outer product).
    """
    w = {name: tensor.double() for name, tensor in weights.items()}
    out, inputs = size[0], size[1:].numel()
    if "lora_down.weight" in w:
        return (
            torch.einsum(
                "or,ri->oi", w["lora_up.weight"].flatten(1), w["lora_down.weight"].flatten(1)
            ).reshape(size)
            * alpha
            / len(w["lora_down.weight"])
        )
    if "hada_t1" in w:
        return (
            torch.einsum("abkl,ao,bi->oikl", w["hada_t1"], w["hada_w1_a"], w["hada_w1_b"])
            * torch.einsum("abkl,ao,bi->oikl", w["hada_t2"], w["hada_w2_a"], w["hada_w2_b"])
            * alpha
            / len(w["hada_w1_b"])
        )
    if "hada_w1_a" in w:
        return (
            torch.einsum(
                "or,ri,os,si->oi", w["hada_w1_a"], w["hada_w1_b"], w["hada_w2_a"], w["hada_w2_b"]
            )
            * alpha
            / len(w["hada_w1_b"])
        ).reshape(size)
    scale = next((alpha / len(w[name]) for name in ("lokr_w2_b", "lokr_w1_b") if name in w), 1.0)
    first = w["lokr_w1"] if "lokr_w1" in w else w["lokr_w1_a"] @ w["lokr_w1_b"]
    if "lokr_t2" in w:
        second = torch.einsum("abkl,ao,bi->oikl", w["lokr_t2"], w["lokr_w2_a"], w["lokr_w2_b"])
    else:
        second = w["lokr_w2"] if "lokr_w2" in w else w["lokr_w2_a"] @ w["lokr_w2_b"]
    second = second.reshape(out // len(first), inputs // first.shape[1])
    return (scale * torch.einsum("ac,bd->abcd", first, second)).reshape(size)


def decomposed(merged, dora_scale):
    """Give each column of a weight the norm that the file says, as the WebUI's
    apply_weight_decompose does.
    """
    norms = merged.transpose(0, 1).reshape(merged.shape[1], -1).norm(dim=1, keepdim=True)
    return merged * (
        dora_scale / norms.reshape(merged.shape[1], *[1] * (merged.dim() - 1)).transpose(0, 1)
    )


def merged_into(parts, adapters):
    """Add to the model's own weights what the file says, the projections of an attention each in
    its third.
    """
    for path, weights in adapters.weights().items():
        above, _, name = path.rpartition(".")
        module = parts.get_submodule(above)
        if isinstance(module, torch.nn.MultiheadAttention) and name != "out_proj":
            weight = module.in_proj_weight.data.chunk(3)["qkv".index(name[0])]
        else:
            weight = parts.get_submodule(path).weight.data
        change = change_in_file(weights, adapters.alphas[path], weight.shape)
        if "dora_scale" in weights:
            change = (
                decomposed(weight.double() + change, weights["dora_scale"].double())
                - weight.double()
            )
        weight += change.to(weight.dtype)
