# mypy: allow-untyped-defs
"""The Triton kernels of causal Luna attention; :mod:`luna_fairseq.ops.triton.launch` says what they are called with.

A program is one chunk of C positions of one head (``bh`` counts sentences and heads together). The head width is
walked through in blocks of BK, so that no configuration depends on it; the rows of P are a block of LP, a power of 2.
What differs from call to call (tied or not, dropout, masks) is an argument and not a constant: few kernels are
compiled. Sums are float32; ``OP`` is what the tensor cores multiply: bfloat16 for bfloat16, float32 (as TF32 for
float16, as three TF32 products for float32) for the others, whose products could overflow float16.

Letters as in README.md beside this folder; also t = positions, l = rows of P, k = head width.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(base, rows, stride, columns, height, width):
    """``[rows, columns]`` of a matrix of ``height`` x ``width`` that lies row by row; 0 outside."""
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    return tl.load(base + rows[:, None].to(tl.int64) * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _put(base, rows, stride, columns, height, width, x):
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    target = base + rows[:, None].to(tl.int64) * stride + columns[None, :]
    tl.store(target, x.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _kept(seed, p, bh, t, rows, N, LP: tl.constexpr):
    """What dropout multiplies by, ``[C, LP]``; made from the seed, the head, the position and the row alone."""
    offset = (bh * N + t)[:, None] * LP + rows[None, :]
    return tl.where(tl.rand(seed, offset.to(tl.int32)) >= p, 1.0 / (1.0 - p), 0.0)


@triton.jit
def _mean(counts, has_counts, b, t, N):
    """1 over the number of real positions so far; no position has fewer than one."""
    count = t + 1
    if has_counts:
        count = tl.load(counts + b * N + t, mask=t < N, other=1)
    return 1.0 / tl.maximum(count, 1).to(tl.float32)


@triton.jit(do_not_specialize=["H", "N", "n", "has_sums", "untied", "seed"])
def chunk_sums(
    key, value, weights, dropped, key_sums, value_sums,
    key_b, key_h, key_n, value_b, value_h, value_n, weights_b, weights_h, weights_n,
    H, N, L, K, n, has_sums, untied, p, seed,
    C: tl.constexpr, LP: tl.constexpr, BK: tl.constexpr, OP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Drop pack weights; the sums of ``a k^T`` and ``a v^T`` over each chunk, behind the place of the first one."""
    pid = tl.program_id(0).to(tl.int64)
    bh, i = pid // n, pid % n
    b, h = bh // H, bh % H
    t, l = (i * C + tl.arange(0, C)).to(tl.int32), tl.arange(0, LP)
    a = _tile(weights + b * weights_b + h * weights_h, t, weights_n, l, N, L)
    if p > 0.0:
        a = a * _kept(seed, p, bh, t, l, N, LP)
    a = a.to(OP)
    _put(dropped + bh * N * L, t, L, l, N, L, a)
    at = tl.trans(a)
    place = (bh * (n + 1) + i + 1) * L * K
    if has_sums:
        for first in range(0, K, BK):
            columns = first + tl.arange(0, BK)
            k = _tile(key + b * key_b + h * key_h, t, key_n, columns, N, K).to(OP)
            _put(key_sums + place, l, K, columns, L, K, tl.dot(at, k, input_precision=PREC))
            if untied:
                v = _tile(value + b * value_b + h * value_h, t, value_n, columns, N, K).to(OP)
                _put(value_sums + place, l, K, columns, L, K, tl.dot(at, v, input_precision=PREC))


@triton.jit(do_not_specialize=["n", "size", "has_start", "first", "step"])
def running_sums(sums, start, n, size, has_start, first, step, T: tl.constexpr, E: tl.constexpr):
    """In place, for each head: ``n + 1`` matrices of ``size`` numbers become their running sums.

    They begin at ``start`` (0 if there is none) in the place ``first``, and go in steps of 1 or -1.
    """
    blocks = tl.cdiv(size, E)
    pid = tl.program_id(0).to(tl.int64)
    bh, e = pid // blocks, ((pid % blocks) * E + tl.arange(0, E)).to(tl.int32)
    inside = e < size
    total = tl.zeros([E], tl.float32)
    if has_start:
        total = tl.load(start + bh * size + e, mask=inside, other=0.0)
    base = sums + bh * (n + 1) * size + e
    tl.store(base + first * size.to(tl.int64), total, mask=inside)
    for done in range(0, n, T):
        number = done + 1 + tl.arange(0, T)
        place = base[None, :] + (first + step * number)[:, None].to(tl.int64) * size
        there = (number[:, None] <= n) & inside[None, :]
        x = tl.load(place, mask=there, other=0.0)
        tl.store(place, tl.cumsum(x, 0) + total[None, :], mask=there)
        total += tl.sum(x, 0)


@triton.jit
def _unpack_weights(
    q, k, a, sums, mask, t, mean, b, bh, N, L, K, has_sums, has_mask, p, seed, q_n, k_n,
    C: tl.constexpr, LP: tl.constexpr, BK: tl.constexpr, OP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """The softmax over the rows of P, ``[C, LP]``, and what dropout multiplies it by."""
    l, own = tl.arange(0, LP), tl.arange(0, C)
    pairs = tl.zeros([C, C], tl.float32)
    scores = tl.zeros([C, LP], tl.float32)
    for first in range(0, K, BK):
        columns = first + tl.arange(0, BK)
        q_block = _tile(q, t, q_n, columns, N, K)
        k_block = _tile(k, t, k_n, columns, N, K).to(OP)
        pairs += tl.dot(q_block.to(OP), tl.trans(k_block), input_precision=PREC)
        if has_sums:
            s = _tile(sums, l, K, columns, L, K)
            scores += tl.dot(q_block.to(tl.float32), tl.trans(s), input_precision=PREC)
    pairs = tl.where(own[:, None] >= own[None, :], pairs, 0.0)
    scores += tl.dot(pairs.to(OP), a, input_precision=PREC)
    scores = scores * mean[:, None]
    open_rows = l < L
    if has_mask:
        open_rows = open_rows & (tl.load(mask + b * L + l, mask=l < L, other=0) != 0)
    scores = tl.where(open_rows[None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    weights = weights / tl.sum(weights, 1)[:, None]
    kept = tl.full([C, LP], 1.0, tl.float32)
    if p > 0.0:
        kept = _kept(seed, p, bh, t, l, N, LP)
    return weights, kept


@triton.jit(do_not_specialize=["H", "N", "n", "has_sums", "has_counts", "has_mask", "seed"])
def unpack(
    query, key, value, dropped, key_sums, value_sums, counts, mask, out,
    query_b, query_h, query_n, key_b, key_h, key_n, value_b, value_h, value_n, out_b, out_h, out_n,
    H, N, L, K, n, has_sums, has_counts, has_mask, scale, p, seed,
    C: tl.constexpr, LP: tl.constexpr, BK: tl.constexpr, OP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """``y_t``: both causal sums of a chunk with the softmax between them."""
    pid = tl.program_id(0).to(tl.int64)
    bh, i = pid // n, pid % n
    b, h = bh // H, bh % H
    own, l = tl.arange(0, C), tl.arange(0, LP)
    t = (i * C + own).to(tl.int32)
    place = (bh * (n + 1) + i) * L * K
    a = _tile(dropped + bh * N * L, t, L, l, N, L)
    mean = _mean(counts, has_counts, b, t, N)
    weights, kept = _unpack_weights(
        query + b * query_b + h * query_h, key + b * key_b + h * key_h, a, key_sums + place, mask,
        t, mean * scale, b, bh, N, L, K, has_sums, has_mask, p, seed, query_n, key_n, C, LP, BK, OP, PREC,
    )  # fmt: skip
    weights = weights * kept
    pairs = tl.dot(weights.to(OP), tl.trans(a), input_precision=PREC)
    pairs = tl.where(own[:, None] >= own[None, :], pairs, 0.0).to(OP)
    for first in range(0, K, BK):
        columns = first + tl.arange(0, BK)
        v = _tile(value + b * value_b + h * value_h, t, value_n, columns, N, K).to(OP)
        y = tl.dot(pairs, v, input_precision=PREC)
        if has_sums:
            s = _tile(value_sums + place, l, K, columns, L, K)
            y += tl.dot(weights, s, input_precision=PREC)
        _put(out + b * out_b + h * out_h, t, out_n, columns, N, K, y * mean[:, None])


@triton.jit(do_not_specialize=["H", "N", "n", "has_sums", "has_counts", "has_mask", "untied", "seed"])
def query_gradient(
    query, key, value, dropped, key_sums, value_sums, counts, mask, grad, d_query, unpacked, d_scores, key_later, value_later,
    query_b, query_h, query_n, key_b, key_h, key_n, value_b, value_h, value_n, grad_b, grad_h, grad_n, out_b, out_h, out_n,
    H, N, L, K, n, has_sums, has_counts, has_mask, untied, scale, p, seed,
    C: tl.constexpr, LP: tl.constexpr, BK: tl.constexpr, OP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dQ, and what the gradients of keys, values and pack weights need of this chunk.

    ``unpacked`` and ``d_scores`` are P (after dropout) and the gradient of the scores, scaled, ``[N, L]`` each; the
    sums over the chunk of ``d_scores^T q`` and ``P^T g`` go where earlier chunks will look for them (one sum of both
    if kv are tied).
    """
    pid = tl.program_id(0).to(tl.int64)
    bh, i = pid // n, pid % n
    b, h = bh // H, bh % H
    own, l = tl.arange(0, C), tl.arange(0, LP)
    t = (i * C + own).to(tl.int32)
    causal = own[:, None] >= own[None, :]
    place = (bh * (n + 1) + i) * L * K
    q_base, k_base, v_base = (
        query + b * query_b + h * query_h,
        key + b * key_b + h * key_h,
        value + b * value_b + h * value_h,
    )
    g_base = grad + b * grad_b + h * grad_h
    a = _tile(dropped + bh * N * L, t, L, l, N, L)
    mean = _mean(counts, has_counts, b, t, N)
    weights, kept = _unpack_weights(
        q_base, k_base, a, key_sums + place, mask,
        t, mean * scale, b, bh, N, L, K, has_sums, has_mask, p, seed, query_n, key_n, C, LP, BK, OP, PREC,
    )  # fmt: skip
    pairs = tl.zeros([C, C], tl.float32)
    d_weights = tl.zeros([C, LP], tl.float32)
    for first in range(0, K, BK):
        columns = first + tl.arange(0, BK)
        g = _tile(g_base, t, grad_n, columns, N, K).to(tl.float32) * mean[:, None]
        v = _tile(v_base, t, value_n, columns, N, K).to(OP)
        pairs += tl.dot(g.to(OP), tl.trans(v), input_precision=PREC)
        if has_sums:
            s = _tile(value_sums + place, l, K, columns, L, K)
            d_weights += tl.dot(g, tl.trans(s), input_precision=PREC)
    pairs = tl.where(causal, pairs, 0.0)
    d_weights += tl.dot(pairs.to(OP), a, input_precision=PREC)
    d_weights = d_weights * kept
    e = weights * (d_weights - tl.sum(d_weights * weights, 1)[:, None]) * (mean * scale)[:, None]
    e_op, weights_op = e.to(OP), (weights * kept).to(OP)
    _put(d_scores + bh * N * L, t, L, l, N, L, e_op)
    _put(unpacked + bh * N * L, t, L, l, N, L, weights_op)
    pairs = tl.dot(e_op, tl.trans(a), input_precision=PREC)
    pairs_op = tl.where(causal, pairs, 0.0).to(OP)
    for first in range(0, K, BK):
        columns = first + tl.arange(0, BK)
        d_q = tl.dot(pairs_op, _tile(k_base, t, key_n, columns, N, K).to(OP), input_precision=PREC)
        if has_sums:
            d_q += tl.dot(e, _tile(key_sums + place, l, K, columns, L, K), input_precision=PREC)
        _put(d_query + b * out_b + h * out_h, t, out_n, columns, N, K, d_q)
        q = _tile(q_base, t, query_n, columns, N, K).to(OP)
        g = (_tile(g_base, t, grad_n, columns, N, K).to(tl.float32) * mean[:, None]).to(OP)
        if has_sums:
            of_keys = tl.dot(tl.trans(e_op), q, input_precision=PREC)
            of_values = tl.dot(tl.trans(weights_op), g, input_precision=PREC)
            if untied:
                _put(value_later + place, l, K, columns, L, K, of_values)
            else:
                of_keys += of_values
            _put(key_later + place, l, K, columns, L, K, of_keys)


@triton.jit(do_not_specialize=["H", "N", "n", "has_sums", "has_counts", "untied", "seed"])
def key_gradient(
    query, key, value, dropped, counts, grad, unpacked, d_scores, key_later, value_later, d_key, d_value, d_weights,
    query_b, query_h, query_n, key_b, key_h, key_n, value_b, value_h, value_n, grad_b, grad_h, grad_n, out_b, out_h, out_n,
    H, N, L, K, n, has_sums, has_counts, untied, p, seed,
    C: tl.constexpr, LP: tl.constexpr, BK: tl.constexpr, OP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dK (dK + dV if kv are tied), dV and the gradient of the pack weights."""
    pid = tl.program_id(0).to(tl.int64)
    bh, i = pid // n, pid % n
    b, h = bh // H, bh % H
    own, l = tl.arange(0, C), tl.arange(0, LP)
    t = (i * C + own).to(tl.int32)
    causal = own[:, None] >= own[None, :]
    place = (bh * (n + 1) + i + 1) * L * K
    q_base, k_base, v_base = (
        query + b * query_b + h * query_h,
        key + b * key_b + h * key_h,
        value + b * value_b + h * value_h,
    )
    g_base = grad + b * grad_b + h * grad_h
    a = _tile(dropped + bh * N * L, t, L, l, N, L)
    e = _tile(d_scores + bh * N * L, t, L, l, N, L)
    weights = _tile(unpacked + bh * N * L, t, L, l, N, L)
    mean = _mean(counts, has_counts, b, t, N)
    qk = tl.zeros([C, C], tl.float32)
    gv = tl.zeros([C, C], tl.float32)
    d_a = tl.zeros([C, LP], tl.float32)
    ea = tl.where(causal, tl.dot(e, tl.trans(a), input_precision=PREC), 0.0).to(OP)
    wa = tl.where(causal, tl.dot(weights, tl.trans(a), input_precision=PREC), 0.0).to(OP)
    for first in range(0, K, BK):
        columns = first + tl.arange(0, BK)
        q = _tile(q_base, t, query_n, columns, N, K).to(OP)
        k = _tile(k_base, t, key_n, columns, N, K)
        v = _tile(v_base, t, value_n, columns, N, K)
        g = (_tile(g_base, t, grad_n, columns, N, K).to(tl.float32) * mean[:, None]).to(OP)
        qk += tl.dot(q, tl.trans(k.to(OP)), input_precision=PREC)
        gv += tl.dot(g, tl.trans(v.to(OP)), input_precision=PREC)
        d_k = tl.dot(tl.trans(ea), q, input_precision=PREC)
        d_v = tl.dot(tl.trans(wa), g, input_precision=PREC)
        if has_sums:
            later = _tile(key_later + place, l, K, columns, L, K)
            d_a += tl.dot(k.to(tl.float32), tl.trans(later), input_precision=PREC)
            d_k += tl.dot(a.to(tl.float32), later, input_precision=PREC)
            if untied:
                later = _tile(value_later + place, l, K, columns, L, K)
                d_a += tl.dot(v.to(tl.float32), tl.trans(later), input_precision=PREC)
                d_v += tl.dot(a.to(tl.float32), later, input_precision=PREC)
        if untied:
            _put(d_value + b * out_b + h * out_h, t, out_n, columns, N, K, d_v)
        else:
            d_k += d_v
        _put(d_key + b * out_b + h * out_h, t, out_n, columns, N, K, d_k)
    qk = tl.where(causal, qk, 0.0).to(OP)
    gv = tl.where(causal, gv, 0.0).to(OP)
    d_a += tl.dot(tl.trans(qk), e, input_precision=PREC) + tl.dot(tl.trans(gv), weights, input_precision=PREC)
    if p > 0.0:
        d_a = d_a * _kept(seed, p, bh, t, l, N, LP)
    _put(d_weights + bh * N * L, t, L, l, N, L, d_a)


@triton.jit
def _activation(scores, SOFTPLUS: tl.constexpr):
    """w(.) of the paper: ``log2(1 + 2^x)``, or ``1 + elu(x)``; see ``CAUSAL_ACTIVATIONS``."""
    small = tl.exp2(-tl.abs(scores)) if SOFTPLUS else tl.exp(tl.minimum(scores, 0.0))
    if SOFTPLUS:
        return tl.maximum(scores, 0.0) + _log2_1p(small)
    return tl.maximum(scores, 0.0) + small


@triton.jit
def _log2_1p(x):
    """``log2(1 + x)`` for x from 0 to 1, also where ``1 + x`` is 1."""
    y = 1.0 + x
    return tl.where(y == 1.0, x * 1.4426950408889634, tl.log2(y) * (x / tl.where(y == 1.0, 1.0, y - 1.0)))


@triton.jit(do_not_specialize=["H", "N", "n"])
def pack_weights(
    context, packed, weights, context_b, context_h, context_n, packed_b, packed_h, packed_n, H, N, L, K, n,
    C: tl.constexpr, LP: tl.constexpr, BK: tl.constexpr, PREC: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """``a = w(c p^T)``, in float32 from the product on."""
    pid = tl.program_id(0).to(tl.int64)
    bh, i = pid // n, pid % n
    b, h = bh // H, bh % H
    t, l = (i * C + tl.arange(0, C)).to(tl.int32), tl.arange(0, LP)
    scores = tl.zeros([C, LP], tl.float32)
    for first in range(0, K, BK):
        columns = first + tl.arange(0, BK)
        c = _tile(context + b * context_b + h * context_h, t, context_n, columns, N, K)
        rows = _tile(packed + b * packed_b + h * packed_h, l, packed_n, columns, L, K)
        scores += tl.dot(c, tl.trans(rows), input_precision=PREC)
    _put(weights + bh * N * L, t, L, l, N, L, _activation(scores, SOFTPLUS))


@triton.jit(do_not_specialize=["H", "N", "groups", "each"])
def pack_gradient(
    context, packed, weights, grad, d_context, parts,
    context_b, context_h, context_n, packed_b, packed_h, packed_n, grad_b, grad_h, grad_n, out_b, out_h, out_n,
    H, N, L, K, groups, each,
    C: tl.constexpr, LP: tl.constexpr, BK: tl.constexpr, OP: tl.constexpr, PREC: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """The gradient of the context, and of ``packed`` a sum for each group of ``each`` chunks.

    The derivative of w is made from w itself: ``1 - 2^-a``, or ``min(a, 1)``.
    """
    pid = tl.program_id(0).to(tl.int64)
    bh, group = pid // groups, pid % groups
    b, h = bh // H, bh % H
    l = tl.arange(0, LP)
    for first in range(0, K, BK):
        columns = first + tl.arange(0, BK)
        rows = _tile(packed + b * packed_b + h * packed_h, l, packed_n, columns, L, K).to(OP)
        total = tl.zeros([LP, BK], tl.float32)
        for chunk in range(0, each):
            t = ((group * each + chunk) * C + tl.arange(0, C)).to(tl.int32)
            a = _tile(weights + bh * N * L, t, L, l, N, L)
            slope = 1.0 - tl.exp2(-a) if SOFTPLUS else tl.minimum(a, 1.0)
            d = (_tile(grad + b * grad_b + h * grad_h, t, grad_n, l, N, L) * slope).to(OP)
            c = _tile(context + b * context_b + h * context_h, t, context_n, columns, N, K).to(OP)
            total += tl.dot(tl.trans(d), c, input_precision=PREC)
            d_c = tl.dot(d, rows, input_precision=PREC)
            _put(d_context + b * out_b + h * out_h, t, out_n, columns, N, K, d_c)
        _put(parts + pid * L * K, l, K, columns, L, K, total)
