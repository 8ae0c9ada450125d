"""A second device for tests: `mock`, which computes on the CPU and records what a GPU waits for.

It is PyTorch's own hook for a backend from outside, PrivateUse1, so that what makes a tensor "on
the device of another" gets one of the mock's. A tensor of it holds one of the CPU. `Watched`
records, with the place in `ehr_ray` each came from:

- `mixes`: an operation on tensors of both devices, which a GPU refuses: it takes a scalar of the
  host, but only element by element;
- `syncs`: what a GPU's queue is emptied for, since the host asks for a value or a size;
- `copies`: transfers from or to the host;
- `host`: tensors made or computed on the host.
"""

import contextlib
import traceback
from dataclasses import dataclass, field

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

NAME = "mock"
COPIES = ("_to_copy", "copy_", "_copy_from")
SIZED_BY_VALUES = (
    *("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"),
    *("_local_scalar_dense", "equal", "is_nonzero", "multinomial", "histc", "allclose"),
)
"""Operations whose result on a GPU is a number for the host or has a size only its values tell."""
SCALARS = (
    *("fill", "fill_", "masked_fill", "masked_fill_", "index_fill", "index_fill_"),
    *("index_put", "index_put_", "__and__", "__or__", "__xor__"),
)
"""Operations that take a scalar of the host besides those torch calls pointwise."""
PRODUCTS = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "conv1d", "conv_transpose1d")
"""What autocast computes in the type it is given."""
OWN_STEPS = ("torch/optim/",)
"""Where torch counts steps in tensors of the host, which no queue waits for."""


class MockTensor(torch.Tensor):
    """A tensor of the device, over one of the CPU."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    def __repr__(self):
        return f"mock({self.inner})"

    def tolist(self):
        """Return the values, by a copy to the host as of any device."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, _types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def computed(func, args, kwargs):
    """Return what an operation gives, computed on the CPU, on the device it belongs to."""
    ours = [t for t in tree_iter((args, kwargs)) if isinstance(t, MockTensor)]
    device, on_mock = kwargs.get("device"), bool(ours)
    if device is not None:
        on_mock = torch.device(device).type == NAME
        kwargs = {**kwargs, "device": "cpu", "pin_memory": None}
        kwargs = {k: v for k, v in kwargs.items() if v is not None}
    args, kwargs = tree_map_only(MockTensor, lambda t: t.inner, (args, kwargs))
    out = FUSED.get(func.overloadpacket.__name__, func)(*args, **kwargs)
    if not on_mock:
        return out
    same = {id(t.inner): t for t in ours}  # an operation in place returns the tensor it was given
    return tree_map_only(
        torch.Tensor, lambda t: same[id(t)] if id(t) in same else MockTensor(t), out
    )


def gru_cell(gates, hidden_gates, hidden, bias=None, hidden_bias=None):
    """Return the state after a step of a GRU, and what its gradient needs: see `FUSED`."""
    gates = gates if bias is None else gates + bias
    hidden_gates = hidden_gates if hidden_bias is None else hidden_gates + hidden_bias
    (reset, update, new), (r, u, n) = gates.chunk(3, 1), hidden_gates.chunk(3, 1)
    reset, update = (reset + r).sigmoid(), (update + u).sigmoid()
    new = (new + reset * n).tanh()
    return (hidden - new) * update + new, torch.cat([gates, hidden_gates, hidden], 1)


def gru_cell_backward(gradient, kept, has_bias):
    """Return the gradients of `gru_cell`'s arguments."""
    width = gradient.shape[1]
    parts = kept.split([3 * width, 3 * width, width], 1)
    found = torch.ops.aten._thnn_differentiable_gru_cell_backward(gradient, *parts, None, None)
    biases = (found[0].sum(0), found[1].sum(0)) if has_bias else (None, None)
    return (*found[:3], *biases)


FUSED = {"_thnn_fused_gru_cell": gru_cell, "_thnn_fused_gru_cell_backward": gru_cell_backward}
"""Kernels of a GPU that the CPU has not, by name."""


class Module:
    """What torch asks of a backend."""

    @staticmethod
    def get_amp_supported_dtype():
        return [torch.bfloat16, torch.float32]

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def device_count():
        return 1

    @staticmethod
    def current_device():
        return 0

    @staticmethod
    def _is_in_bad_fork():
        return False

    @staticmethod
    def manual_seed_all(_seed):
        """Do nothing: draws are the CPU's."""

    @staticmethod
    def get_rng_state(_device=None):
        return torch.random.get_rng_state()

    @staticmethod
    def set_rng_state(state, _device=None):
        torch.random.set_rng_state(state)


def mock_device():
    """Return the device, registered once a process."""
    if not hasattr(torch, NAME):
        torch.utils.backend_registration._setup_privateuseone_for_python_backend(NAME, Module())
        global _LIBRARY, _AUTOCAST  # they live as long as what they register
        _LIBRARY = torch.library.Library("aten", "IMPL")
        _LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")
        _LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")
        # Autocast may be on, as a GPU's is: products take its type, all else stays as it is.
        _AUTOCAST = torch.library.Library("_", "IMPL")
        _AUTOCAST.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        for name in PRODUCTS:
            _LIBRARY.impl(name, lowered(getattr(torch.ops.aten, name)), "AutocastPrivateUse1")
    return torch.device(NAME, 0)


def lowered(product):
    """Return the product of what it is given in the type of autocast."""

    def cast(*args, **kwargs):
        here = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        with torch._C._ExcludeDispatchKeyGuard(here):
            dtype = torch.get_autocast_dtype(NAME)
            args, kwargs = tree_map_only(
                torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, (args, kwargs)
            )
            return product(*args, **kwargs)

    return cast


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    """`torch.tensor(..., device=mock)` asks for this below the level of modes, and then copies."""
    return MockTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source, target, non_blocking=False):
    if Watched.active is not None:
        Watched.active.note("copies", "tensor of host values")
    target.inner.copy_(source)
    return target


@dataclass
class Watched(TorchDispatchMode):
    """What happened within it; tensors are made on the device only there.

    See the module's page; entries read `operation at file:line`.
    """

    mixes: list = field(default_factory=list)
    syncs: list = field(default_factory=list)
    copies: list = field(default_factory=list)
    host: list = field(default_factory=list)
    operations: int = 0
    names: set = field(default_factory=set)
    """Of the operations."""
    in_parts: bool = False
    """Whether recurrent layers run operation by operation, as no GPU's kernels are here."""
    active = None

    def __post_init__(self):
        super().__init__()

    def __enter__(self):
        Watched.active = self
        self._around = contextlib.ExitStack()
        # Backward runs in this thread, which the Python of the mock needs.
        self._around.enter_context(torch.autograd.set_multithreading_enabled(False))
        if self.in_parts:
            self._around.enter_context(enable_python_dispatcher())
        return super().__enter__()

    def __exit__(self, *error):
        Watched.active = None
        super().__exit__(*error)
        self._around.close()

    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)]
        ours = [t for t in tensors if isinstance(t, MockTensor)]
        out = computed(func, args, kwargs)
        made = [t for t in tree_iter(out) if isinstance(t, torch.Tensor)]
        self.operations += 1
        self.names.add(name)
        if name in COPIES and len(ours) < len(tensors) + len(made) and (ours or _mock(made)):
            both = {isinstance(t, MockTensor) for t in [*tensors, *made]}
            if len(both) == 2:
                self.note("copies", name)
                if not all(isinstance(t, MockTensor) for t in made):
                    self.note("syncs", name)
        elif ours and mixed(func, [t for t in tensors if not isinstance(t, MockTensor)]):
            self.note("mixes", name)
        elif ours and waits(name, args, kwargs, func):
            self.note("syncs", name)
        elif not ours and not _mock(made):
            self.note("host", name)
        return out

    def note(self, kind, name):
        """Record an event with the place in the product it came from."""
        stack = traceback.extract_stack()
        if kind == "host" and any(part in f.filename for f in stack for part in OWN_STEPS):
            return
        places = [
            f"{name} at {frame.filename.rpartition('/ehr_ray/')[2]}:{frame.lineno}"
            for frame in stack
            if "/ehr_ray/" in frame.filename
        ]
        getattr(self, kind).append(places[-1] if places else name)


def mixed(func, hosts):
    """Whether a GPU refuses these tensors of the host beside its own."""
    takes = torch.Tag.pointwise in func.tags or func.overloadpacket.__name__ in SCALARS
    return any(t.ndim or not takes for t in hosts)


def waits(name, args, kwargs, func):
    """Whether the host of a GPU waits for this operation on its tensors."""
    if name in SIZED_BY_VALUES:
        return True
    if name in ("index", "index_put", "index_put_", "_unsafe_index"):
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name == "segment_reduce":
        return not kwargs.get("unsafe", False)
    return False


def _mock(tensors):
    return any(isinstance(t, MockTensor) for t in tensors)
