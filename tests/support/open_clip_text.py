"""A tiny text transformer with open_clip's module paths and attention, as SD2 and SDXL's second
text encoder have it.
"""

import torch


class ResidualAttentionBlock(torch.nn.Module):
    def __init__(self, width: int, batch_first: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.attn = torch.nn.MultiheadAttention(width, 2, batch_first=batch_first)
        self.mlp = torch.nn.ModuleDict(
            {"c_fc": torch.nn.Linear(width, 2 * width), "c_proj": torch.nn.Linear(2 * width, width)}
        )

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](torch.nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))


class OpenClipText(torch.nn.Module):
    """Takes `(tokens, batch, width)`, or `(batch, tokens, width)` when `batch_first`, and attends
    to earlier tokens only.
    """

    def __init__(self, width: int = 12, layers: int = 2, batch_first: bool = False) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.transformer = torch.nn.ModuleDict(
            {
                "resblocks": torch.nn.ModuleList(
                    [ResidualAttentionBlock(width, batch_first) for _ in range(layers)]
                )
            }
        )

    def forward(self, x):
        tokens = x.shape[1 if self.batch_first else 0]
        mask = torch.triu(torch.full((tokens, tokens), float("-inf")), 1).to(x.dtype)
        for block in self.transformer["resblocks"]:
            x = block(x, mask)
        return x
