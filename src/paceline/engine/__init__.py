"""The loop that strings the decisions together, and the `LLM` facade over it."""
