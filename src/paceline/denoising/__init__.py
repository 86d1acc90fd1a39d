"""Masked diffusion models: which open positions are decided when, and which rows each forward computes."""
