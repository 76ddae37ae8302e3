"""Apollo, clipping and the milestone schedule, held to the published trajectories."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from luna_fairseq.optim.apollo import FairseqApollo, FairseqApolloConfig
from luna_fairseq.optim.milestone import MilestoneSchedule, MilestoneScheduleConfig
from support.models import assert_close, load_golden


def _apollo(params: Any, **options: Any) -> FairseqApollo:
    options = {"lr": [0.1], "fp16": False, "bf16": False, **options}
    return FairseqApollo(FairseqApolloConfig(**options), params)


def _schedule(optimizer: FairseqApollo, **options: Any) -> MilestoneSchedule:
    return MilestoneSchedule(MilestoneScheduleConfig(lr=[0.1], **options), optimizer)


@pytest.mark.parametrize("file", ["apollo_trajectories", "apollo_trajectories_small_grads"])
@pytest.mark.parametrize("rebound", ["constant", "belief"])
@pytest.mark.parametrize("decay_type", ["L2", "decoupled", "stable"])
def test_apollo_trajectory(file: str, rebound: str, decay_type: str) -> None:
    golden = load_golden(file)
    meta, want = golden["meta"], golden["outputs"][f"{rebound}_{decay_type}"]
    params = [torch.nn.Parameter(p.clone()) for p in golden["inputs"]["params"]]
    optimizer = _apollo(
        params,
        lr=[meta["lr"]],
        apollo_beta=meta["beta"],
        apollo_eps=meta["eps"],
        apollo_rebound=rebound,
        weight_decay=meta["weight_decay"],
        weight_decay_type=decay_type,
    )
    for step, grads in enumerate(golden["inputs"]["grads"]):
        if meta["lr_per_step"] is not None:
            optimizer.set_lr(meta["lr_per_step"][step])
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        optimizer.step()
        for i, param in enumerate(params):
            assert_close(param, want["params_after_step"][step][i], f"parameter {i} after step {step}", rel=2e-5)
    for i, param in enumerate(params):
        for key in ("exp_avg_grad", "approx_hessian", "update"):
            assert_close(optimizer.optimizer.state[param][key], want["final_state"][i][key], key, rel=2e-5)


@pytest.mark.parametrize("rebound", ["constant", "belief"])
@pytest.mark.parametrize("decay_type", ["L2", "decoupled", "stable"])
def test_all_tensors_at_once_as_on_a_gpu(rebound: str, decay_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pytorch_optimizer does there by default: the loop's numbers, of parameters in two types."""
    golden = load_golden("apollo_trajectories")["inputs"]
    at_once = FairseqApollo.optimizer_config.fget  # type: ignore[attr-defined]
    results = []
    for foreach in (False, True):
        options = {"apollo_rebound": rebound, "weight_decay": 0.01, "weight_decay_type": decay_type}
        monkeypatch.setattr(
            FairseqApollo,
            "optimizer_config",
            property(lambda self: {**at_once(self), "foreach": foreach}),  # noqa: B023
        )
        params = [torch.nn.Parameter(p.clone()) for p in golden["params"]]
        params.append(torch.nn.Parameter(golden["params"][0].double()))
        optimizer = _apollo([*params, torch.nn.Parameter(torch.ones(3))], **options)
        called = []
        step = optimizer.optimizer._step_foreach
        monkeypatch.setattr(optimizer.optimizer, "_step_foreach", lambda *a: (called.append(1), step(*a)))  # noqa: B023
        for grads in golden["grads"]:
            for param, grad in zip(params, [*grads, grads[0].double()], strict=True):
                param.grad = grad.clone()
            optimizer.step()
        assert len(called) == (2 * len(golden["grads"]) if foreach else 0)
        results.append([x for p in params for x in (p.detach(), *optimizer.optimizer.state[p].values())])
    for number, (got, want) in enumerate(zip(*reversed(results), strict=True)):
        assert_close(got, want, f"tensor {number}", rel=2e-5)


@pytest.mark.parametrize(("rebound", "expected"), [("constant", "l2"), ("belief", "decoupled")])
def test_default_weight_decay_type(rebound: str, expected: str) -> None:
    optimizer = _apollo([torch.nn.Parameter(torch.ones(2))], apollo_rebound=rebound)
    assert optimizer.optimizer_config["weight_decay_type"] == expected


@pytest.mark.parametrize("mode", ["each", "total"])
def test_clip_mode(mode: str) -> None:
    golden = load_golden("clip_grad_norm")
    want = golden["outputs"][mode]
    params = [torch.nn.Parameter(torch.zeros_like(g)) for g in golden["inputs"]["grads"]]
    unused = torch.nn.Parameter(torch.ones(3))
    optimizer = _apollo([*params, unused], clip_mode=mode)
    for param, grad in zip(params, golden["inputs"]["grads"], strict=True):
        param.grad = grad.clone()
    norm = optimizer.clip_grad_norm(golden["meta"]["max_norm"])
    torch.testing.assert_close(norm, want["returned_norm"], rtol=1e-6, atol=0.0)
    for param, clipped in zip(params, want["clipped"], strict=True):
        torch.testing.assert_close(param.grad, clipped, rtol=1e-6, atol=1e-9)
    assert unused.grad is None


def test_clip_norm_zero_clips_nothing() -> None:
    param = torch.nn.Parameter(torch.zeros(2))
    optimizer = _apollo([param], clip_mode="each")
    param.grad = torch.tensor([3.0, 4.0])
    assert optimizer.clip_grad_norm(0.0).item() == pytest.approx(5.0)
    assert param.grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_clip_each_is_refused_where_the_wrapper_clips(half: str) -> None:
    with pytest.raises(ValueError, match="--amp"):
        _apollo([torch.nn.Parameter(torch.ones(2))], clip_mode="each", **{half: True})


def test_apollo_takes_no_flat_parameters() -> None:
    assert not _apollo([torch.nn.Parameter(torch.ones(2))]).supports_flat_params


def test_unknown_weight_decay_type() -> None:
    with pytest.raises(ValueError, match=r"'l3'.*L2, decoupled, stable"):
        _apollo([torch.nn.Parameter(torch.ones(2))], weight_decay_type="l3")


def _published_options() -> Any:
    meta = load_golden("milestone_lr")["meta"]
    return {k: meta[k] for k in ("warmup_updates", "warmup_init_lr", "lr_decay_rate", "milestones")}


class TestMilestone:
    options = _published_options()

    def test_published_sequence_however_often_it_is_called(self) -> None:
        """Published: decays again at every call on a milestone. Here: once."""
        want = load_golden("milestone_lr")["outputs"]["lr"]
        optimizer = _apollo([torch.nn.Parameter(torch.ones(2))])
        schedule = _schedule(optimizer, **self.options)
        assert optimizer.get_lr() == pytest.approx(want[0], rel=1e-6)
        for update, lr in enumerate(want):
            for _ in range(3):
                assert schedule.step_update(update) == pytest.approx(lr, rel=1e-6)
            schedule.step(epoch=update, val_loss=1.0)
            assert optimizer.get_lr() == pytest.approx(lr, rel=1e-6)

    def test_resume_and_jump_over_milestones(self) -> None:
        want = load_golden("milestone_lr")["outputs"]["lr"]
        for update in (25, 30, 40):
            optimizer = _apollo([torch.nn.Parameter(torch.ones(2))])
            schedule = _schedule(optimizer, **self.options)
            schedule.load_state_dict({"lr": 0.123})
            assert schedule.step_update(update) == pytest.approx(want[update], rel=1e-6)

    def test_no_warmup_starts_at_the_rate(self) -> None:
        optimizer = _apollo([torch.nn.Parameter(torch.ones(2))])
        _schedule(optimizer, warmup_updates=0, milestones=[5])
        assert optimizer.get_lr() == 0.1

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"milestones": [0]}, "--milestones"), ({"warmup_updates": -1}, "--warmup-updates")],
    )
    def test_bad_options(self, options: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            _schedule(_apollo([torch.nn.Parameter(torch.ones(2))]), **options)

    def test_two_rates(self) -> None:
        cfg = SimpleNamespace(lr=[0.1, 0.2], warmup_updates=0, warmup_init_lr=-1, milestones=[], lr_decay_rate=0.1)
        with pytest.raises(ValueError, match="one rate"):
            MilestoneSchedule(cfg, _apollo([torch.nn.Parameter(torch.ones(2))]))
