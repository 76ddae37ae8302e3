"""Optimizer and schedule of the paper."""
