"""Low-rank adaptation (LoRA): few numbers per layer are trained, and added to the plain weights when the network is saved.

r rank. A layer's weight W, seen as (out, in * kernel), becomes W + up @ down with up (out, r) and down (r, in * kernel).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

LAYERS = (nn.Conv2d, nn.Linear)


class LowRank(nn.Module):
    """What is added to one weight; nothing at first, because ``up`` starts at 0."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        columns = weight[0].numel()
        self.down = nn.Parameter(torch.randn(rank, columns).div(columns**0.5).to(weight))
        self.up = nn.Parameter(torch.zeros(len(weight), rank).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def add_lora(network: nn.Module, rank: int, seed: int = 0) -> nn.Module:
    """Freeze the network and give every convolution and linear layer a low-rank addition to train. Changes ``network``."""
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in [module for module in network.modules() if isinstance(module, LAYERS)]:
            smaller = min(rank, len(layer.weight), layer.weight[0].numel())  # more would add nothing
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, smaller))
    return network


def with_shared_weights(network: nn.Module) -> nn.Module:
    """A copy whose weights are the network's own: LoRA leaves them as they are, and a large network's are a gigabyte."""
    return copy.deepcopy(network, {id(weight): weight for weight in network.parameters()})


def merged(network: nn.Module) -> nn.Module:
    """A copy with the additions in its plain weights, which any loader reads; of a network without LoRA a plain copy."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        if parametrize.is_parametrized(module, "weight"):
            weight = module.weight.detach()
            # not remove_parametrizations: it changes the class, which the copy shares with the original
            del module.parametrizations
            module.__class__ = type(module).__base__
            module.weight = nn.Parameter(weight)
    return network.requires_grad_(False).eval()
