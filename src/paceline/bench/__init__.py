"""Measurement: benchmarks, peers, floors and the audit that proves what was preserved."""
