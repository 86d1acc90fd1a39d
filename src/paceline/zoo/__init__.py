"""Pocket models: small enough to ship, real enough to measure on, and rebuilt by one command."""
