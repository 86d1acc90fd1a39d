"""Training: recipes for what speculative methods need learnt."""
