"""Counts kernels that are launched and bytes that they move, on tensors that hold nothing ("meta")."""

from typing import Any, Dict, List, Set, Tuple

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Moved(TorchDispatchMode):
    """What is launched inside: each operation of PyTorch reads its inputs and writes its outputs, once."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: List[Tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        views = any(x.alias_info is not None and not x.alias_info.is_write for x in func._schema.returns)
        created = str(func).split(".")[1] in (
            "new_empty",
            "empty",
            "empty_like",
            "_unsafe_view",
            "detach",
            "promote_types",
        )
        if not views and not created:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            self.launches.append((str(func), sum(x.numel() * x.element_size() for x in tensors)))
        return out

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.launches)


class _Kernel:
    """Stands in for one of Triton's: each tensor that it is given is moved once."""

    def __init__(self, name: str, moved: Moved) -> None:
        self.name, self.moved = name, moved

    def __getitem__(self, grid: Tuple[int, ...]) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            seen: Set[Tuple[int, int]] = set()
            total = 0
            for x in args:
                if isinstance(x, Tensor):
                    place = (x.untyped_storage()._cdata, x.storage_offset())
                    total += 0 if place in seen else x.numel() * x.element_size()
                    seen.add(place)
            again = 2 if self.name == "running_sums" else 1  # in place: read and written
            self.moved.launches.append((self.name, again * total))

        return launch


def counted_kernels(monkeypatch: pytest.MonkeyPatch, launch: Any, moved: Moved) -> None:
    """Kernels that are counted instead of run, for as long as the test lasts."""
    names = "chunk_sums running_sums unpack query_gradient key_gradient pack_weights pack_gradient".split()
    stand_ins: Dict[str, Any] = {name: _Kernel(name, moved) for name in names}
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(launch.kernels, name, stand_in)
