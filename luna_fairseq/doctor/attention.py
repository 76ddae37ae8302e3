"""Both attentions against numbers that were computed elsewhere, forward and backward.

Short inputs against what the published implementation computed (``golden.npz``, two of the cases that the tests have;
of the gradient of a matrix every eighth row). Longer ones, which are computed in chunks and with other masks, against
the slow reference in float64 (:mod:`luna_fairseq.ops.naive`).
"""

from pathlib import Path
from typing import Any, Dict, List, Tuple

from luna_fairseq.doctor.verdicts import Finding, Wrong

GOLDEN = Path(__file__).with_name("golden.npz")
CASES = ("attn_causal_tied_len7_pmask", "attn_self_tied_pheads_masks")
# What may differ, as a part of the largest number of a tensor (of the output, of at least 1), and for gradients as a
# part of the largest of all of them besides. The golden numbers themselves are float32.
FORWARD = {"float64": 1e-5, "float32": 1e-5, "bfloat16": 2e-2, "float16": 2.5e-3}
BACKWARD = {"float64": (1e-4, 1e-6), "float32": (1e-4, 1e-6), "bfloat16": (2e-2, 2e-2), "float16": (2.5e-3, 2.5e-3)}
LENGTH, ROWS, WIDTH, HEADS = 150, 6, 16, 2  # beyond the 128 positions that are one product


class _Comparison:
    """Collects how much of what is allowed was used.

    Args:
        dtype: what is computed in.
    """

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.used = {"forward": 0.0, "backward": 0.0}  # parts of what is allowed
        self.numbers = 0

    def _see(self, kind: str, what: str, got: Any, want: Any, allowed: float) -> None:
        error = (got.detach().double().cpu() - want.double()).abs().max().item()
        if not error <= allowed:  # NaN, too
            raise Wrong(f"{what} is off by {error:.2g}, where {allowed:.2g} is allowed")
        self.used[kind] = max(self.used[kind], error / allowed)
        self.numbers += got.numel()

    def outputs(self, case: str, got: Dict[str, Any], want: Dict[str, Any]) -> None:
        """Compare what was computed forward."""
        for name, reference in want.items():
            allowed = FORWARD[self.dtype] * max(1.0, reference.abs().max().item())
            self._see("forward", f"{name} of {case}", got[name], reference, allowed)

    def gradients(self, case: str, got: Dict[str, Any], want: Dict[str, Any]) -> None:
        """Compare gradients."""
        own, of_all = BACKWARD[self.dtype]
        largest = max(gradient.abs().max().item() for gradient in want.values())
        for name, reference in want.items():
            allowed = own * reference.abs().max().item() + of_all * largest
            self._see("backward", f"the gradient of {name} of {case}", got[name], reference, allowed)


def _golden(case: str) -> Dict[str, Dict[str, Any]]:
    """The tensors of a case by part and name."""
    import numpy as np
    import torch

    parts: Dict[str, Dict[str, Any]] = {}
    with np.load(GOLDEN, allow_pickle=False) as stored:
        for key in stored.files:
            of, part, name = key.split("/")
            if of == case:
                parts.setdefault(part, {})[name] = torch.from_numpy(stored[key])
    return parts


def _gradients(module: Any, inputs: Dict[str, Any]) -> Dict[str, Any]:
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    found.update({f"input:{name}": tensor.grad for name, tensor in inputs.items() if tensor.requires_grad})
    return found


def _compare_golden(case: str, device: str, dtype: str, comparison: _Comparison) -> None:
    import torch

    from luna_fairseq import ops
    from luna_fairseq.modules import CausalLunaAttention, LunaAttention

    golden = _golden(case)
    causal = "causal" in case
    module = CausalLunaAttention(32, 4) if causal else LunaAttention(32, 4, 2)
    module.load_state_dict(golden["state_dict"])
    module.eval().to(device, getattr(torch, dtype))
    inputs = {}
    for name, tensor in golden["inputs"].items():
        floats = tensor.is_floating_point()
        inputs[name] = tensor.to(device, getattr(torch, dtype) if floats else None).requires_grad_(floats)
    # Stored time first, as the published code has it.
    query, packed = inputs["query"].transpose(0, 1), inputs["pquery"].transpose(0, 1)
    if causal:
        y = module(query, packed, ops.key_mask(inputs["pkey_padding_mask"]))
        outputs = {"attn": y.transpose(0, 1)}
    else:
        masks = [ops.key_mask(inputs[f"{which}_padding_mask"]) for which in ("context", "pcontext")]
        y, y_packed, _ = module(query, packed, query, *masks)
        outputs = {"attn": y.transpose(0, 1), "pcontext": y_packed.transpose(0, 1)}
    sum(output.float().square().mean() for output in outputs.values()).backward()
    gradients = _gradients(module, inputs)
    rows = {name: gradient[::8] if name.endswith(".weight") else gradient for name, gradient in gradients.items()}
    comparison.outputs(case, outputs, golden["outputs"])
    comparison.gradients(case, rows, golden["grads"])


def _naive(module: Any, x: Any, packed: Any, padding: Any) -> Any:
    """What an attention should give, by the slow reference, with the projections of the module.

    Args:
        module: in float64.
        x: ``[N, D]``.
        packed: ``[L, D]``.
        padding: ``[N]`` bool, True = padding at the end.
    """
    import torch

    from luna_fairseq.ops import CAUSAL_ACTIVATIONS, naive

    def heads(tensor: Any) -> List[Any]:
        return list(tensor.unflatten(-1, (HEADS, -1)).unbind(-2))

    def keys_and_values(y: Any, prefix: str, tied: str) -> Tuple[List[Any], List[Any]]:
        names = (tied, tied) if module.tie_kv else (f"{prefix}k", f"{prefix}v")
        return tuple(heads(module.get_submodule(f"{name}_proj")(y)) for name in names)  # type: ignore[return-value]

    found = []
    if hasattr(module, "activation"):
        keys, values = keys_and_values(x, "", "c")
        contexts, queries = heads(module.pc_proj(x)), heads(module.pq_proj(packed))
        for q, k, v, context, p in zip(heads(module.q_proj(x)), keys, values, contexts, queries, strict=True):
            weights = CAUSAL_ACTIVATIONS[module.activation](context @ p.T * p.size(-1) ** -0.5)
            found.append(naive.naive_causal_luna(q, k, v, weights, None, padding))
    else:
        keys, values = keys_and_values(x, "p", "pc")
        packing = zip(heads(module.pq_proj(packed)), keys, values, strict=True)
        y_packed = torch.cat([naive.naive_attention(q, k, v, padding) for q, k, v in packing], dim=-1)
        keys, values = keys_and_values(y_packed, "", "c")
        unpacking = zip(heads(module.q_proj(x)), keys, values, strict=True)
        found = [naive.naive_attention(q, k, v) for q, k, v in unpacking]
    return module.out_proj(torch.cat(found, dim=-1))


def _compare_reference(causal: bool, tied: bool, device: str, dtype: str, comparison: _Comparison) -> None:
    import copy

    import torch

    from luna_fairseq import ops
    from luna_fairseq.modules import CausalLunaAttention, LunaAttention

    case = f"{'causal' if causal else 'self'} attention {'tied' if tied else 'untied'}, {LENGTH} positions"
    generator = torch.Generator().manual_seed(7)
    module = (CausalLunaAttention if causal else LunaAttention)(WIDTH, HEADS, tie_kv=tied).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * WIDTH**-0.5)
    # The same numbers for both, so that only the arithmetic differs.
    module.to(getattr(torch, dtype))
    x, packed, slope = (
        torch.randn(1, length, WIDTH, generator=generator).to(getattr(torch, dtype))
        for length in (LENGTH, ROWS, LENGTH)
    )
    padding = torch.arange(LENGTH)[None] >= LENGTH - 9
    slope[padding] = 0
    results: List[Tuple[Dict[str, Any], Dict[str, Any]]] = []
    for reference in (True, False):
        layer = copy.deepcopy(module)
        layer.to("cpu", torch.float64) if reference else layer.to(device)
        inputs = {name: (one.double() if reference else one.to(device)) for name, one in (("x", x), ("P", packed))}
        inputs = {name: one.detach().requires_grad_() for name, one in inputs.items()}
        mask = padding.to(inputs["x"].device)
        if reference:
            y = _naive(layer, inputs["x"][0], inputs["P"][0], mask[0])[None]
        elif causal:
            y = layer(inputs["x"], inputs["P"], None, mask)
        else:
            y = layer(inputs["x"], inputs["P"], inputs["x"], ops.key_mask(mask))[0]
        (y * slope.to(y.device, y.dtype)).sum().backward()
        results.append(({"the output": y[~mask].detach().cpu()}, _gradients(layer, inputs)))
    (want, want_gradients), (got, got_gradients) = results
    comparison.outputs(case, got, want)
    comparison.gradients(case, got_gradients, want_gradients)


def check_attention(device: str, dtype: str) -> Finding:
    """Both attentions on one device, in one precision.

    Raises:
        Wrong: if a number is further off than the precision explains.
    """
    comparison = _Comparison(dtype)
    for case in CASES:
        _compare_golden(case, device, dtype, comparison)
    for causal in (False, True):
        for tied in (True, False):
            _compare_reference(causal, tied, device, dtype, comparison)
    own, of_all = BACKWARD[dtype]
    text = (
        f"{comparison.numbers:,} numbers agree with the published code and with the reference; at most "
        f"{comparison.used['forward']:.0%} of what is allowed forward ({FORWARD[dtype]:g}) and "
        f"{comparison.used['backward']:.0%} of it backward ({own:g} of each gradient, {of_all:g} of the largest)"
    )
    allowed = {"forward": FORWARD[dtype], "backward": [own, of_all]}
    return Finding(text, {"used": comparison.used, "allowed": allowed, "numbers": comparison.numbers})
