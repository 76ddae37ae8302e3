"""Criteria; fairseq does not look into this folder by itself, the package imports them."""
