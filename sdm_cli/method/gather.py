"""Images of all processes together, for attention that reaches beyond a process; knows torch.distributed alone."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_images(images: Tensor) -> Tensor:
    """The images of all processes, in their order; differentiable. Every process calls it, with as many images.

    The gradient that an image gets is the sum over the losses of all processes. Where gradients of parameters are then
    averaged over the processes, as DistributedDataParallel does, they are those of the mean of the losses.

    Args:
        images: (B, ...) of this process.

    Returns:
        (B * processes, ...); `images` itself in a run of one process.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return images
    gathered: Tensor = _Gather.apply(images)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        ctx.n_images = len(images)
        parts = [torch.empty_like(images, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, images.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.narrow(0, dist.get_rank() * ctx.n_images, ctx.n_images)
