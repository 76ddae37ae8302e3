"""``--optimizer apollo``: the quasi-Newton optimizer that the paper trains translation with (section 4.2)."""

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, List, Optional

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II
from torch import Tensor


@dataclass
class FairseqApolloConfig(FairseqDataclass):
    """Options of Apollo (published names and defaults)."""

    apollo_beta: float = field(default=0.9, metadata={"help": "decay of the running average of the gradient"})
    apollo_eps: float = field(default=1e-4, metadata={"help": "added to the denominator"})
    apollo_rebound: ChoiceEnum(["constant", "belief"]) = field(  # type: ignore[valid-type]
        default="constant", metadata={"help": "lower bound of the Hessian estimate"}
    )
    weight_decay: float = field(default=0.0, metadata={"help": "weight decay"})
    weight_decay_type: Optional[str] = field(
        default=None,
        metadata={"help": "L2, decoupled or stable (default: L2 for rebound constant, decoupled for belief)"},
    )
    clip_mode: ChoiceEnum(["total", "each"]) = field(  # type: ignore[valid-type]
        default="total",
        metadata={"help": "what --clip-norm bounds: the norm of all gradients together, or of each on its own"},
    )
    fp16: bool = II("common.fp16")
    bf16: bool = II("common.bf16")
    lr: List[float] = II("optimization.lr")


@register_optimizer("apollo", dataclass=FairseqApolloConfig)
class FairseqApollo(FairseqOptimizer):
    """Apollo (Ma 2020, arXiv 2009.13586) as ``pytorch_optimizer.ApolloDQN``, its own warm-up off.

    It works tensor by tensor, so it takes no flattened parameters: fairseq then refuses ``--fp16`` unless
    ``--fp16-no-flatten-grads`` is given.

    Args:
        cfg: the options.
        params: what to optimise.

    Raises:
        ValueError: for an unknown ``--weight-decay-type``, or ``--clip-mode each`` with ``--fp16`` or
            ``--bf16``, whose wrapper clips all gradients together without asking the optimizer.
    """

    def __init__(self, cfg: FairseqApolloConfig, params: Iterable[torch.nn.Parameter]) -> None:
        super().__init__(cfg)
        for name in ("fp16", "bf16"):
            if cfg.clip_mode == "each" and getattr(cfg, name, False) is True:
                raise ValueError(
                    f"--clip-mode each does not work with --{name}, which clips all gradients together: "
                    "use --amp instead, or --clip-mode total"
                )
        if cfg.weight_decay_type not in (None, "L2", "decoupled", "stable"):
            raise ValueError(f"--weight-decay-type is {cfg.weight_decay_type!r}: choose one of L2, decoupled, stable")
        from pytorch_optimizer import ApolloDQN  # here, because it takes a second to import

        self._optimizer = ApolloDQN(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> Dict[str, Any]:
        """What ApolloDQN is built with, again for ``--zero-sharding os``; replaces what a checkpoint holds."""
        default = "L2" if self.cfg.apollo_rebound == "constant" else "decoupled"
        return {
            "lr": self.cfg.lr[0],
            "beta": self.cfg.apollo_beta,
            "eps": self.cfg.apollo_eps,
            "rebound": str(self.cfg.apollo_rebound),
            "weight_decay": self.cfg.weight_decay,
            "weight_decay_type": (self.cfg.weight_decay_type or default).lower(),
            "warmup_steps": 0,
        }

    @property
    def supports_flat_params(self) -> bool:
        return False

    def clip_grad_norm(
        self, max_norm: float, aggregate_norm_fn: Optional[Callable[[Tensor], Tensor]] = None
    ) -> Tensor:
        """Clip gradients in place.

        Args:
            max_norm: bound of the norm(s); 0 clips nothing.
            aggregate_norm_fn: fairseq's sum over shards, for ``--clip-mode total``.

        Returns:
            the norm before clipping: of all gradients, or the largest single one for ``--clip-mode each``.
        """
        if self.cfg.clip_mode == "total":
            return super().clip_grad_norm(max_norm, aggregate_norm_fn)
        grads = [p.grad.detach() for p in self.params if p.grad is not None]
        if not grads:
            return torch.tensor(0.0)
        norms = torch._foreach_norm(grads)
        if max_norm > 0:
            torch._foreach_mul_(grads, [(max_norm / (norm + 1e-6)).clamp(max=1.0) for norm in norms])
        return torch.stack([norm.float() for norm in norms]).max()
