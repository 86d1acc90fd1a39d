"""How queries meet memory: one plan per forward, one backend call per layer."""
