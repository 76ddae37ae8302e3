"""Causal Luna attention in Triton kernels; :mod:`luna_fairseq.ops.fused` decides when they are used.

Only :mod:`luna_fairseq.ops.triton.kernels` needs triton, and nothing imports it before a kernel is launched.
"""
