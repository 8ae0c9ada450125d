"""Autocast of a GPU on the CPU: more operators compute in float32 there.

So a layer meets float32 where the CPU's autocast gives it bf16, and what takes one type alone
fails, as it would there.
"""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

FLOAT32 = {
    *("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log1p", "log2"),
    *("reciprocal", "rsqrt", "sinh", "tan", "softplus", "pow", "__pow__", "__rpow__"),
    *("__rdiv__", "__rtruediv__", "cumprod", "cumsum", "dist", "cdist", "pdist", "norm"),
    *("prod", "renorm", "sum", "logsumexp", "normalize", "cosine_similarity"),
    *("layer_norm", "group_norm", "softmax", "softmin", "log_softmax", "cross_entropy"),
    *("nll_loss", "kl_div", "l1_loss", "mse_loss", "smooth_l1_loss", "huber_loss"),
    *("binary_cross_entropy_with_logits", "poisson_nll_loss"),
}
"""Operators that autocast gives float32 on a GPU, by torch's own list."""


class AsOnGPU(TorchFunctionMode):
    """Casts to float32, where autocast is on, what it casts to that on a GPU."""

    def __torch_function__(self, function, _types, args=(), kwargs=None):
        """Call the function with its tensors as autocast on a GPU gives them to it."""
        kwargs = kwargs or {}
        if function.__name__ in FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_single, args), tree_map(_single, kwargs)
        return function(*args, **kwargs)


def _single(value):
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
