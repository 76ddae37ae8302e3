"""Two gloo processes give the loss and the gradients of one: torch's DistributedDataParallel and FSDP2."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
import torch.distributed as dist
from torch import Tensor, nn

from support.devices import gradients
from support.models import PAD, assert_close, make_batch, make_lm, make_model, make_sentences
from support.runs import in_a_child

pytestmark = pytest.mark.long

Batch = Tuple[Any, ...]


def _batches(name: str) -> List[Batch]:
    """One for each process, of two sentences."""
    found = []
    for seed in (0, 1):
        source = make_batch(make_sentences([3 + seed, 12], seed=seed), "left")
        target = make_batch(make_sentences([6, 2 + seed], seed=2 + seed), "right")
        found.append((target,) if name == "luna_lm" else (source, None, target))
    return found


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return (model(*batch)[0] * batch[-1].ne(PAD).unsqueeze(-1)).square().mean()


def _make(name: str, **changes: Any) -> Any:
    return (make_lm if name == "luna_lm" else make_model)(**changes).train()


def _alone(name: str) -> Tuple[List[float], Dict[str, Tensor]]:
    """The losses of both batches, and the gradient of their mean."""
    model = _make(name)
    losses = [_loss(model, batch) for batch in _batches(name)]
    (sum(losses) / 2).backward()  # type: ignore[union-attr]
    return [loss.item() for loss in losses], gradients(model)


@contextlib.contextmanager
def _group(rank: int, store: Path) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(str(store), 2), rank=rank, world_size=2)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _in_two(work: Callable[[int], None], folder: Path) -> None:
    """Do it in two processes of one group; what one of them raises is printed."""

    def one(rank: int) -> int:
        def run() -> None:
            with _group(rank, folder / "store"):
                work(rank)

        return in_a_child(run)

    with ThreadPoolExecutor(2) as pool:  # each waits for its process
        assert list(pool.map(one, (0, 1))) == [0, 0]


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", ["luna", "luna_lm"])
def test_static_graph_and_buckets_as_views(name: str, checkpointed: bool, tmp_path: Path) -> None:
    """Also with activations made anew; in the second update too, where a static graph is known."""
    losses, wanted = _alone(name)

    def work(rank: int) -> None:
        model = _make(name, checkpoint_activations=checkpointed)
        wrapped = nn.parallel.DistributedDataParallel(model, static_graph=True, gradient_as_bucket_view=True)
        for _ in range(2):
            wrapped.zero_grad()
            loss = _loss(wrapped, _batches(name)[rank])
            loss.backward()
            assert abs(loss.item() - losses[rank]) <= 1e-6
            found = gradients(model)
            assert found.keys() == wanted.keys()
            for key, grad in wanted.items():
                assert_close(found[key], grad, key, rel=1e-6)

    _in_two(work, tmp_path)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", ["luna", "luna_lm"])
def test_fully_sharded(name: str, checkpointed: bool, tmp_path: Path) -> None:
    """Every layer by itself, and what is left; each process holds half of every parameter."""
    from torch.distributed.fsdp import fully_shard

    losses, wanted = _alone(name)

    def work(rank: int) -> None:
        # Whoever changes the logits in place would lose a hook: nobody does here.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        model = _make(name, checkpoint_activations=checkpointed)
        mesh = dist.init_device_mesh("cpu", (2,))
        for side in ("encoder", "decoder"):
            for layer in getattr(getattr(model, side, None), "layers", ()):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        for _ in range(2):
            model.zero_grad()
            loss = _loss(model, _batches(name)[rank])
            loss.backward()
            assert abs(loss.item() - losses[rank]) <= 1e-6
        held = dict(model.named_parameters())
        assert {key for key, p in held.items() if p.grad is not None} == wanted.keys()
        for key, grad in wanted.items():
            part: Any = held[key]
            assert part.to_local().size(0) < grad.size(0) or grad.size(0) == 1, key
            assert_close(part.grad.full_tensor(), grad, key, rel=1e-6)

    _in_two(work, tmp_path)
