# mypy: allow-untyped-defs
"""The Triton kernels of causal Luna attention; :mod:`luna_fairseq.ops.triton.launch` says what they are called with.

A program is one chunk of C positions of one head (``bh`` counts sentences and heads together). The rows of P go by in
blocks of BL, with the running softmax of FlashAttention, and the width of a head in blocks of BK: no configuration
depends on them, and no tile is large. What differs from call to call (tied or not, dropout, masks, a state) is an
argument and not a constant: few kernels are compiled. Sums are float32. ``OP`` is what the tensor cores multiply:
bfloat16 for bfloat16, float32 for the others (as TF32 for float16, whose products could overflow, as three TF32
products for float32).

Letters as in README.md of the folder above. ``own`` and ``at + own`` are the positions of a chunk, ``left`` how many
there are from its first one on, ``rows`` a block of P, ``columns`` one of a head.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(base, rows, stride, columns, height, width):
    """``[rows, columns]`` of a matrix of ``height`` x ``width`` that lies row by row; 0 outside."""
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _put(base, rows, stride, columns, height, width, x):
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    tl.store(base + rows[:, None] * stride + columns[None, :], x.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _place(x, b, h, at, stride_b, stride_h, stride_n):
    """Where position ``at`` of a head begins in ``[B, H, N, ...]``; what is within a chunk is 32 bits from there."""
    return x + b * stride_b + h * stride_h + at * stride_n


@triton.jit
def _kept(seed, p, bh, at, own, rows, N, L):
    """What dropout multiplies by; made from the seed, the head, the position and the row alone."""
    offset = (bh * N + at + own)[:, None] * L + rows[None, :]
    return tl.where(tl.rand(seed, offset.to(tl.int32)) >= p, 1.0 / (1.0 - p), 0.0)


@triton.jit
def _rate(rates, has_decay, h):
    """At which a head forgets; 0 where none does."""
    rate = 0.0
    if has_decay:
        rate = tl.load(rates + h)
    return rate


@triton.jit
def _without_exp(x):
    """``1 - exp(-x)`` for x from 0 on, with all digits where x is small."""
    small = 1.0 - x / 3.0 * (1.0 - x / 4.0 * (1.0 - x / 5.0 * (1.0 - x / 6.0 * (1.0 - x / 7.0))))
    return tl.where(x < 0.3, x * (1.0 - x / 2.0 * small), 1.0 - tl.exp(-x))


@triton.jit
def _mean(counts, has_counts, rate, b, at, own, left, N):
    """1 over the number of real positions so far, or over what a head has not forgotten of them; at least one."""
    count = (at + own + 1).to(tl.int32)
    if has_counts:
        count = tl.load(counts + b * N + at + own, mask=own < left, other=1)
    number = tl.maximum(count, 1).to(tl.float32)
    if rate > 0.0:
        number = _without_exp(rate * number) / _without_exp(rate)
    return 1.0 / number


@triton.jit
def _since(rate, own):
    """What is left, at each position, of the sums before the chunk: ``[C, 1]``."""
    return tl.exp(-rate * (own + 1).to(tl.float32))[:, None]


@triton.jit
def _until(rate, own, left, C: tl.constexpr):
    """What is left of each position behind the last one of the chunk: ``[C, 1]``."""
    return tl.exp(-rate * tl.maximum(tl.minimum(left, C) - 1 - own, 0).to(tl.float32))[:, None]


@triton.jit
def _left(pairs, rate, later, earlier):
    """Pairs of positions, times what is left of the earlier one at the later one; 0 where it is the later one."""
    return tl.where(later >= earlier, pairs * tl.exp(-rate * tl.maximum(later - earlier, 0).to(tl.float32)), 0.0)


@triton.jit
def _products(
    x, x_n, y, y_n, own, left, K,
    C: tl.constexpr, BK: tl.constexpr, OP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """The products of each position of the one with each of the other, ``[C, C]``."""
    pairs = tl.zeros([C, C], tl.float32)
    for first in range(0, K, BK):
        columns = first + tl.arange(0, BK)
        x_block = _tile(x, own, x_n, columns, left, K).to(OP)
        y_block = _tile(y, own, y_n, columns, left, K).to(OP)
        pairs += tl.dot(x_block, tl.trans(y_block), input_precision=PREC)
    return pairs


@triton.jit
def _by_sums(
    x, x_n, sums, own, rows, left, L, K,
    C: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """The products of each position with a block of rows of the sums, ``[C, BL]``."""
    out = tl.zeros([C, BL], tl.float32)
    for first in range(0, K, BK):
        columns = first + tl.arange(0, BK)
        x_block = _tile(x, own, x_n, columns, left, K).to(tl.float32)
        out += tl.dot(x_block, tl.trans(_tile(sums, rows, K, columns, L, K)), input_precision=PREC)
    return out


@triton.jit
def _of_sums(
    x, sums, own, columns, left, L, K,
    C: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """What each position weighs the rows with, ``[N, L]``, times a block of columns of the sums, ``[C, BK]``."""
    out = tl.zeros([C, BK], tl.float32)
    for first in range(0, L, BL):
        rows = first + tl.arange(0, BL)
        x_block = _tile(x, own, L, rows, left, L).to(tl.float32)
        out += tl.dot(x_block, _tile(sums, rows, K, columns, L, K), input_precision=PREC)
    return out


@triton.jit
def _closed(scores, mask, b, rows, L, has_mask):
    """Minus infinity where there is no row of P."""
    there = rows < L
    if has_mask:
        there = tl.load(mask + b * L + rows, mask=there, other=0) != 0
    return tl.where(there[None, :], scores, float("-inf"))


@triton.jit
def _highest(highest, scores):
    """The highest score so far, and 0 where there was none: what is subtracted is finite."""
    highest = tl.maximum(highest, tl.max(scores, 1))
    return highest, tl.where(highest == float("-inf"), 0.0, highest)


@triton.jit(do_not_specialize=["H", "N", "n", "has_sums", "untied", "has_decay", "seed"])
def chunk_sums(
    key, value, weights, dropped, key_sums, value_sums, rates,
    key_b, key_h, key_n, value_b, value_h, value_n, weights_b, weights_h, weights_n,
    H, N, L, K, n, has_sums, untied, has_decay, p, seed,
    C: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr, OP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Drop pack weights; the sums of ``a k^T`` and ``a v^T`` over each chunk, behind the place of the first one."""
    pid = tl.program_id(0).to(tl.int64)
    bh, at = pid // n, pid % n * C
    b, h = bh // H, bh % H
    own, left = tl.arange(0, C), (N - at).to(tl.int32)
    place = (bh * (n + 1) + pid % n + 1) * L * K
    key, value = _place(key, b, h, at, key_b, key_h, key_n), _place(value, b, h, at, value_b, value_h, value_n)
    weights, dropped = _place(weights, b, h, at, weights_b, weights_h, weights_n), dropped + (bh * N + at) * L
    until = _until(_rate(rates, has_decay, h), own, left, C)
    for first in range(0, L, BL):
        rows = first + tl.arange(0, BL)
        a = _tile(weights, own, weights_n, rows, left, L)
        if p > 0.0:
            a = a * _kept(seed, p, bh, at, own, rows, N, L)
        _put(dropped, own, L, rows, left, L, a)
        a = (a.to(OP) * until).to(OP)
        if has_sums:
            for column in range(0, K, BK):
                columns = column + tl.arange(0, BK)
                k = _tile(key, own, key_n, columns, left, K).to(OP)
                _put(key_sums + place, rows, K, columns, L, K, tl.dot(tl.trans(a), k, input_precision=PREC))
                if untied:
                    v = _tile(value, own, value_n, columns, left, K).to(OP)
                    _put(value_sums + place, rows, K, columns, L, K, tl.dot(tl.trans(a), v, input_precision=PREC))


@triton.jit
def _passed(number, step, n, N, C: tl.constexpr):
    """How many positions lie before the place ``number`` steps from the first one; the last chunk may be short."""
    return tl.where(step > 0, tl.minimum(number * C, N), tl.where(number > 0, N - (n - number) * C, 0))


@triton.jit(do_not_specialize=["n", "size", "has_start", "first", "step", "H", "N", "has_decay"])
def running_sums(
    sums, start, rates, n, size, has_start, first, step, H, N, has_decay,
    T: tl.constexpr, E: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """In place, for each head: ``n + 1`` matrices of ``size`` numbers become their running sums.

    They begin at ``start`` (0 if there is none) in the place ``first``, and go in steps of 1 or -1. Heads that forget
    keep of a sum what is left of it behind the positions of each step.
    """
    blocks = tl.cdiv(size, E)
    pid = tl.program_id(0).to(tl.int64)
    rate = _rate(rates, has_decay, pid // blocks % H)
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
        if has_decay:
            passed = _passed(number, step, n, N, C)
            kept = _left(tl.full([T, T], 1.0, tl.float32), rate, passed[:, None], passed[None, :])
            kept = tl.where(number[:, None] >= number[None, :], kept, 0.0)
            of_total = tl.exp(-rate * (passed - _passed(done, step, n, N, C)).to(tl.float32))
            x = tl.dot(kept, x, input_precision="ieee") + of_total[:, None] * total[None, :]
            tl.store(place, x, mask=there)
            total = tl.sum(tl.where((number == tl.minimum(done + T, n))[:, None], x, 0.0), 0)
        else:
            tl.store(place, tl.cumsum(x, 0) + total[None, :], mask=there)
            total += tl.sum(x, 0)


@triton.jit(do_not_specialize=["H", "N", "n", "has_sums", "has_counts", "has_mask", "has_decay", "seed"])
def unpack(
    query, key, value, dropped, key_sums, value_sums, counts, mask, rates, unpacked, out,
    query_b, query_h, query_n, key_b, key_h, key_n, value_b, value_h, value_n, out_b, out_h, out_n,
    H, N, L, K, n, has_sums, has_counts, has_mask, has_decay, scale, p, seed,
    C: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr, OP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """``y_t``: both causal sums of a chunk with the softmax between them, which goes through ``unpacked``."""
    pid = tl.program_id(0).to(tl.int64)
    bh, at = pid // n, pid % n * C
    b, h = bh // H, bh % H
    own, left = tl.arange(0, C), (N - at).to(tl.int32)
    rate = _rate(rates, has_decay, h)
    place = (bh * (n + 1) + pid % n) * L * K
    mean = _mean(counts, has_counts, rate, b, at, own, left, N)
    query, key = _place(query, b, h, at, query_b, query_h, query_n), _place(key, b, h, at, key_b, key_h, key_n)
    value, out = _place(value, b, h, at, value_b, value_h, value_n), _place(out, b, h, at, out_b, out_h, out_n)
    dropped, unpacked = dropped + (bh * N + at) * L, unpacked + (bh * N + at) * L
    pairs = _products(query, query_n, key, key_n, own, left, K, C, BK, OP, PREC)
    pairs = _left(pairs, rate, own[:, None], own[None, :]).to(OP)
    highest = tl.full([C], float("-inf"), tl.float32)
    total = tl.zeros([C], tl.float32)
    # Twice through P: the softmax needs a sum over all rows first.
    blocks = tl.cdiv(L, BL)
    for block in range(0, 2 * blocks):
        rows = (block % blocks) * BL + tl.arange(0, BL)
        a = _tile(dropped, own, L, rows, left, L)
        scores = tl.dot(pairs, a, input_precision=PREC)
        if has_sums:
            scores += _since(rate, own) * _by_sums(
                query, query_n, key_sums + place, own, rows, left, L, K, C, BL, BK, PREC
            )
        scores = _closed(scores * (mean * scale)[:, None], mask, b, rows, L, has_mask)
        before = highest
        highest, finite = _highest(before, scores)
        weights = tl.exp(scores - finite[:, None])
        if block < blocks:
            total = total * tl.exp(before - finite) + tl.sum(weights, 1)
        else:
            weights = weights / total[:, None]
            if p > 0.0:
                weights = weights * _kept(seed, p, bh, at, own, rows, N, L)
            _put(unpacked, own, L, rows, left, L, weights)
    tl.debug_barrier()  # below, the threads of this chunk read what others of it have written
    pairs = _products(unpacked, L, dropped, L, own, left, L, C, BL, OP, PREC)
    pairs = _left(pairs, rate, own[:, None], own[None, :]).to(OP)
    for first in range(0, K, BK):
        columns = first + tl.arange(0, BK)
        y = tl.dot(pairs, _tile(value, own, value_n, columns, left, K).to(OP), input_precision=PREC)
        if has_sums:
            y += _since(rate, own) * _of_sums(unpacked, value_sums + place, own, columns, left, L, K, C, BL, BK, PREC)
        _put(out, own, out_n, columns, left, K, y * mean[:, None])


@triton.jit(do_not_specialize=["H", "N", "n", "has_sums", "has_counts", "has_mask", "untied", "has_decay", "seed"])
def query_gradient(
    query, key, value, dropped, key_sums, value_sums, counts, mask, rates, grad,
    d_query, unpacked, d_scores, key_later, value_later,
    query_b, query_h, query_n, key_b, key_h, key_n, value_b, value_h, value_n,
    grad_b, grad_h, grad_n, out_b, out_h, out_n,
    H, N, L, K, n, has_sums, has_counts, has_mask, untied, has_decay, scale, p, seed,
    C: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr, OP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """The gradient of Q, and what the gradients of keys, values and pack weights need of this chunk.

    ``unpacked`` and ``d_scores`` are P (after dropout) and the gradient of the scores, scaled, ``[N, L]`` each; the
    sums over the chunk of ``d_scores^T q`` and ``P^T g`` go where earlier chunks will look for them (one sum of both
    if kv are tied).
    """
    pid = tl.program_id(0).to(tl.int64)
    bh, at = pid // n, pid % n * C
    b, h = bh // H, bh % H
    own, left = tl.arange(0, C), (N - at).to(tl.int32)
    rate = _rate(rates, has_decay, h)
    place = (bh * (n + 1) + pid % n) * L * K
    mean = _mean(counts, has_counts, rate, b, at, own, left, N)
    query, key = _place(query, b, h, at, query_b, query_h, query_n), _place(key, b, h, at, key_b, key_h, key_n)
    value, grad = _place(value, b, h, at, value_b, value_h, value_n), _place(grad, b, h, at, grad_b, grad_h, grad_n)
    d_query = _place(d_query, b, h, at, out_b, out_h, out_n)
    dropped = dropped + (bh * N + at) * L
    unpacked, d_scores = unpacked + (bh * N + at) * L, d_scores + (bh * N + at) * L
    pairs = _products(query, query_n, key, key_n, own, left, K, C, BK, OP, PREC)
    pairs = _left(pairs, rate, own[:, None], own[None, :]).to(OP)
    d_pairs = _products(grad, grad_n, value, value_n, own, left, K, C, BK, OP, PREC)
    d_pairs = _left(d_pairs, rate, own[:, None], own[None, :]).to(OP)
    highest = tl.full([C], float("-inf"), tl.float32)
    total = tl.zeros([C], tl.float32)
    inner = tl.zeros([C], tl.float32)  # P times its gradient
    # Twice through P: the softmax and its gradient need sums over all rows first.
    blocks = tl.cdiv(L, BL)
    for block in range(0, 2 * blocks):
        rows = (block % blocks) * BL + tl.arange(0, BL)
        a = _tile(dropped, own, L, rows, left, L)
        scores = tl.dot(pairs, a, input_precision=PREC)
        d_weights = tl.dot(d_pairs, a, input_precision=PREC)
        if has_sums:
            scores += _since(rate, own) * _by_sums(
                query, query_n, key_sums + place, own, rows, left, L, K, C, BL, BK, PREC
            )
            d_weights += _since(rate, own) * _by_sums(
                grad, grad_n, value_sums + place, own, rows, left, L, K, C, BL, BK, PREC
            )
        scores = _closed(scores * (mean * scale)[:, None], mask, b, rows, L, has_mask)
        d_weights = d_weights * mean[:, None]
        kept = tl.full([C, BL], 1.0, tl.float32)
        if p > 0.0:
            kept = _kept(seed, p, bh, at, own, rows, N, L)
        before = highest
        highest, finite = _highest(before, scores)
        weights = tl.exp(scores - finite[:, None])
        if block < blocks:
            shrink = tl.exp(before - finite)
            total = total * shrink + tl.sum(weights, 1)
            inner = inner * shrink + tl.sum(weights * kept * d_weights, 1)
        else:
            weights = weights / total[:, None]
            e = weights * (d_weights * kept - (inner / total)[:, None]) * (mean * scale)[:, None]
            _put(d_scores, own, L, rows, left, L, e)
            _put(unpacked, own, L, rows, left, L, weights * kept)
    tl.debug_barrier()  # below, the threads of this chunk read what others of it have written
    pairs = _products(d_scores, L, dropped, L, own, left, L, C, BL, OP, PREC)
    pairs = _left(pairs, rate, own[:, None], own[None, :]).to(OP)
    for first in range(0, K, BK):
        columns = first + tl.arange(0, BK)
        d_q = tl.dot(pairs, _tile(key, own, key_n, columns, left, K).to(OP), input_precision=PREC)
        if has_sums:
            d_q += _since(rate, own) * _of_sums(d_scores, key_sums + place, own, columns, left, L, K, C, BL, BK, PREC)
            for row in range(0, L, BL):
                rows = row + tl.arange(0, BL)
                e = (_tile(d_scores, own, L, rows, left, L) * _since(rate, own)).to(OP)
                of_keys = tl.dot(
                    tl.trans(e), _tile(query, own, query_n, columns, left, K).to(OP), input_precision=PREC
                )
                g = (_tile(grad, own, grad_n, columns, left, K).to(tl.float32) * mean[:, None]).to(OP)
                weights = (_tile(unpacked, own, L, rows, left, L) * _since(rate, own)).to(OP)
                of_values = tl.dot(tl.trans(weights), g, input_precision=PREC)
                if untied:
                    _put(value_later + place, rows, K, columns, L, K, of_values)
                else:
                    of_keys += of_values
                _put(key_later + place, rows, K, columns, L, K, of_keys)
        _put(d_query, own, out_n, columns, left, K, d_q)


@triton.jit(do_not_specialize=["H", "N", "n", "has_sums", "has_counts", "untied", "has_decay", "seed"])
def key_gradient(
    query, key, value, dropped, counts, rates, grad, unpacked, d_scores,
    key_later, value_later, d_key, d_value, d_weights,
    query_b, query_h, query_n, key_b, key_h, key_n, value_b, value_h, value_n,
    grad_b, grad_h, grad_n, out_b, out_h, out_n,
    H, N, L, K, n, has_sums, has_counts, untied, has_decay, p, seed,
    C: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr, OP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """The gradients of K (with that of V if kv are tied), of V and of the pack weights."""
    pid = tl.program_id(0).to(tl.int64)
    bh, at = pid // n, pid % n * C
    b, h = bh // H, bh % H
    own, left = tl.arange(0, C), (N - at).to(tl.int32)
    rate = _rate(rates, has_decay, h)
    place = (bh * (n + 1) + pid % n + 1) * L * K
    mean = _mean(counts, has_counts, rate, b, at, own, left, N)
    query, key = _place(query, b, h, at, query_b, query_h, query_n), _place(key, b, h, at, key_b, key_h, key_n)
    value, grad = _place(value, b, h, at, value_b, value_h, value_n), _place(grad, b, h, at, grad_b, grad_h, grad_n)
    d_key, d_value = _place(d_key, b, h, at, out_b, out_h, out_n), _place(d_value, b, h, at, out_b, out_h, out_n)
    dropped, d_weights = dropped + (bh * N + at) * L, d_weights + (bh * N + at) * L
    unpacked, d_scores = unpacked + (bh * N + at) * L, d_scores + (bh * N + at) * L
    kq = _products(key, key_n, query, query_n, own, left, K, C, BK, OP, PREC)
    kq = _left(kq, rate, own[None, :], own[:, None]).to(OP)
    vg = _products(value, value_n, grad, grad_n, own, left, K, C, BK, OP, PREC)
    vg = _left(vg * mean[None, :], rate, own[None, :], own[:, None]).to(OP)
    for first in range(0, L, BL):
        rows = first + tl.arange(0, BL)
        e = _tile(d_scores, own, L, rows, left, L)
        weights = _tile(unpacked, own, L, rows, left, L)
        d_a = tl.dot(kq, e, input_precision=PREC) + tl.dot(vg, weights, input_precision=PREC)
        if has_sums:
            d_a += _until(rate, own, left, C) * _by_sums(
                key, key_n, key_later + place, own, rows, left, L, K, C, BL, BK, PREC
            )
            if untied:
                d_a += _until(rate, own, left, C) * _by_sums(
                    value, value_n, value_later + place, own, rows, left, L, K, C, BL, BK, PREC
                )
        if p > 0.0:
            d_a = d_a * _kept(seed, p, bh, at, own, rows, N, L)
        _put(d_weights, own, L, rows, left, L, d_a)
    ae = _products(dropped, L, d_scores, L, own, left, L, C, BL, OP, PREC)
    aw = _products(dropped, L, unpacked, L, own, left, L, C, BL, OP, PREC)
    ae_op = _left(ae, rate, own[None, :], own[:, None]).to(OP)
    aw_op = _left(aw, rate, own[None, :], own[:, None]).to(OP)
    for first in range(0, K, BK):
        columns = first + tl.arange(0, BK)
        d_k = tl.dot(ae_op, _tile(query, own, query_n, columns, left, K).to(OP), input_precision=PREC)
        if has_sums:
            d_k += _until(rate, own, left, C) * _of_sums(
                dropped, key_later + place, own, columns, left, L, K, C, BL, BK, PREC
            )
        g = (_tile(grad, own, grad_n, columns, left, K).to(tl.float32) * mean[:, None]).to(OP)
        d_v = tl.dot(aw_op, g, input_precision=PREC)
        if untied:
            if has_sums:
                d_v += _until(rate, own, left, C) * _of_sums(
                    dropped, value_later + place, own, columns, left, L, K, C, BL, BK, PREC
                )
            _put(d_value, own, out_n, columns, left, K, d_v)
        else:
            d_k += d_v
        _put(d_key, own, out_n, columns, left, K, d_k)


@triton.jit
def _log2_1p(x):
    """``log2(1 + x)`` for x from 0 to 1, also where ``1 + x`` is 1."""
    y = 1.0 + x
    return tl.where(y == 1.0, x * 1.4426950408889634, tl.log2(y) * (x / tl.where(y == 1.0, 1.0, y - 1.0)))


@triton.jit(do_not_specialize=["H", "N", "n", "softplus"])
def pack_weights(
    context, packed, weights, context_b, context_h, context_n, packed_b, packed_h, packed_n,
    H, N, L, K, n, softplus,
    C: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """``a = w(c p^T)``, in float32 from the product on; w is ``log2(1 + 2^x)``, or ``1 + elu(x)``."""
    pid = tl.program_id(0).to(tl.int64)
    bh, at = pid // n, pid % n * C
    b, h = bh // H, bh % H
    own, left = tl.arange(0, C), (N - at).to(tl.int32)
    context, packed = _place(context, b, h, at, context_b, context_h, context_n), packed + b * packed_b + h * packed_h
    for first in range(0, L, BL):
        rows = first + tl.arange(0, BL)
        scores = tl.zeros([C, BL], tl.float32)
        for column in range(0, K, BK):
            columns = column + tl.arange(0, BK)
            c = _tile(context, own, context_n, columns, left, K)
            scores += tl.dot(c, tl.trans(_tile(packed, rows, packed_n, columns, L, K)), input_precision=PREC)
        if softplus:
            small = _log2_1p(tl.exp2(-tl.abs(scores)))
        else:
            small = tl.exp(tl.minimum(scores, 0.0))
        _put(weights + (bh * N + at) * L, own, L, rows, left, L, tl.maximum(scores, 0.0) + small)


@triton.jit
def _slope(a, softplus):
    """The derivative of w, by its value: ``1 - 2^-a``, or ``min(a, 1)``."""
    slope = tl.minimum(a, 1.0)
    if softplus:
        slope = 1.0 - tl.exp2(-a)
    return slope


@triton.jit(do_not_specialize=["H", "N", "groups", "each", "softplus"])
def pack_gradient(
    context, packed, weights, grad, d_context, parts,
    context_b, context_h, context_n, packed_b, packed_h, packed_n, grad_b, grad_h, grad_n, out_b, out_h, out_n,
    H, N, L, K, groups, each, softplus,
    C: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr, OP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """The gradient of the context, and of ``packed`` a sum for each group of ``each`` chunks."""
    pid = tl.program_id(0).to(tl.int64)
    bh, group = pid // groups, pid % groups
    b, h = bh // H, bh % H
    own = tl.arange(0, C)
    packed, parts = packed + b * packed_b + h * packed_h, parts + pid * L * K
    for column in range(0, K, BK):
        columns = column + tl.arange(0, BK)
        for chunk in range(0, each):
            at = (group * each + chunk) * C
            left = (N - at).to(tl.int32)
            place = _place(context, b, h, at, context_b, context_h, context_n)
            c = _tile(place, own, context_n, columns, left, K).to(OP)
            d_c = tl.zeros([C, BK], tl.float32)
            for first in range(0, L, BL):
                rows = first + tl.arange(0, BL)
                a = _tile(weights + (bh * N + at) * L, own, L, rows, left, L)
                d = _tile(_place(grad, b, h, at, grad_b, grad_h, grad_n), own, grad_n, rows, left, L)
                d = (d * _slope(a, softplus)).to(OP)
                d_c += tl.dot(d, _tile(packed, rows, packed_n, columns, L, K).to(OP), input_precision=PREC)
            place = _place(d_context, b, h, at, out_b, out_h, out_n)
            _put(place, own, out_n, columns, left, K, d_c)
        for first in range(0, L, BL):
            rows = first + tl.arange(0, BL)
            total = tl.zeros([BL, BK], tl.float32)
            for chunk in range(0, each):
                at = (group * each + chunk) * C
                left = (N - at).to(tl.int32)
                a = _tile(weights + (bh * N + at) * L, own, L, rows, left, L)
                d = _tile(_place(grad, b, h, at, grad_b, grad_h, grad_n), own, grad_n, rows, left, L)
                d = (d * _slope(a, softplus)).to(OP)
                place = _place(context, b, h, at, context_b, context_h, context_n)
                c = _tile(place, own, context_n, columns, left, K).to(OP)
                total += tl.dot(tl.trans(d), c, input_precision=PREC)
            _put(parts, rows, K, columns, L, K, total)
