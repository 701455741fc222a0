"""A Mixture-of-Experts layer: every token is sent to a few of many small networks."""

import torch
from torch import nn


class MoeLayer(nn.Module):
    """Mix the outputs of the `top_k` experts that a linear router prefers for each token."""

    def __init__(self, width: int, n_experts: int = 8, top_k: int = 2) -> None:
        super().__init__()
        if not 0 < top_k <= n_experts:
            raise ValueError(f"top_k is {top_k}, but there are {n_experts} experts")
        self.top_k = top_k
        self.router = nn.Linear(width, n_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)) for _ in range(n_experts)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Send each token to its experts and add up what they return."""
        tokens = hidden.reshape(-1, hidden.shape[-1])  # (tokens, width)
        scores, chosen = self.router(tokens).topk(self.top_k, dim=-1)
        weights = scores.softmax(dim=-1)  # the chosen ones sum to one
        mixed = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            rows, slots = torch.where(chosen == index)
            if len(rows) == 0:
                continue  # nobody asked for this expert
            share = weights[rows, slots].unsqueeze(-1)
            mixed.index_add_(0, rows, share * expert(tokens[rows]))
        return mixed.reshape(hidden.shape)


if __name__ == "__main__":
    layer = MoeLayer(width=64)
    print(layer(torch.randn(2, 10, 64)).shape)
