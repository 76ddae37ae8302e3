"""Criteria; fairseq does not look into this folder by itself, :mod:`luna_fairseq.plugin` imports them."""

from luna_fairseq import compat

compat.prepare()
