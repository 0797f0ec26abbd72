"""Multi-head attention with fewer heads than its width asks for."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class HeadPrunedAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` whose heads do not add up to ``embed_dim``.

    It has the same tensors under the same names: ``in_proj_weight`` is
    ``(3 * num_heads * head_dim, embed_dim)`` and ``out_proj.weight``
    ``(embed_dim, num_heads * head_dim)``. It is made by :func:`.shrink.shrink`, never
    called into being by name.
    """

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend; arguments and results are those of ``nn.MultiheadAttention``."""
        batched = query.dim() == 3
        inputs = [x if batched else x.unsqueeze(1) for x in (query, key, value)]
        if batched and self.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        q, k, v = (
            self._split_heads(F.linear(x, weight, bias))
            for x, (weight, bias) in zip(inputs, self._projections(), strict=True)
        )
        mask = self._merged_mask(key_padding_mask, attn_mask, q)
        if need_weights:
            scores = q @ k.transpose(-2, -1) / self.head_dim**0.5
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            weights = F.dropout(weights, self.dropout, self.training)
            attended = weights @ v
        else:
            weights = None
            drop = self.dropout if self.training else 0.0
            attended = F.scaled_dot_product_attention(q, k, v, mask, drop)
        # (batch, heads, length, head_dim) -> (length, batch, heads * head_dim)
        out = self.out_proj(attended.permute(2, 0, 1, 3).flatten(2))
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        if not batched:
            return out.squeeze(1), weights
        return out.transpose(0, 1) if self.batch_first else out, weights

    def _projections(self) -> list[tuple[Any, Any]]:
        weights = self.in_proj_weight.chunk(3)
        bias = self.in_proj_bias
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        return list(zip(weights, biases, strict=True))

    def _split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """``(length, batch, inner)`` -> ``(batch, heads, length, head_dim)``."""
        heads = x.reshape(*x.shape[:-1], -1, self.head_dim)
        return heads.permute(1, 2, 0, 3)

    def _merged_mask(
        self,
        padding: torch.Tensor | None,
        attention: torch.Tensor | None,
        query: torch.Tensor,
    ) -> torch.Tensor | None:
        """Give one additive mask that broadcasts to ``(batch, heads, L, S)``."""
        total = None
        for mask, is_padding in ((padding, True), (attention, False)):
            if mask is None:
                continue
            if mask.dtype == torch.bool:
                zeros = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device)
                mask = zeros.masked_fill(mask, float("-inf"))
            if is_padding:
                mask = mask.view(-1, 1, 1, mask.shape[-1])
            elif mask.dim() == 3:  # (batch * heads, L, S) of the dense layer
                raise ValueError("a mask a head does not fit a layer that lost heads.")
            total = mask if total is None else total + mask
        return total
