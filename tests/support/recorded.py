"""What stands for a CUDA graph where there is none: the operations of a call, done again on the tensors of that call.

As in a graph, no Python runs in between, numbers of the program stay as they were, and what is read and written stays
where it was. What a capture refuses is refused: to look at values.
"""

from collections.abc import Callable
from typing import Any, List, Tuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_LOOKS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_consecutive"}
_LEFT_OUT = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"}


class Recorded(TorchDispatchMode):
    """A call that can be repeated.

    Args:
        run: the call.
        device: unused.
    """

    made: List["Recorded"] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which takes two seconds

    def __init__(self, run: Callable[[], None], device: torch.device) -> None:
        super().__init__()
        self.replays = 0
        self._calls: List[Tuple[Any, Any, Any, Any]] = []
        run()  # as before a capture
        with self:
            run()
        Recorded.made.append(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if name in _LOOKS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        out = func(*args, **(kwargs or {}))
        returned = func._schema.returns
        view = returned and returned[0].alias_info is not None and not returned[0].alias_info.is_write
        if not view and name not in _LEFT_OUT:
            self._calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """Do it once more."""
        self.replays += 1
        for func, args, kwargs, before in self._calls:
            now = func(*args, **kwargs)
            for old, new in zip(tree_leaves(before), tree_leaves(now), strict=True):
                if isinstance(old, Tensor) and old is not new:
                    old.copy_(new)
