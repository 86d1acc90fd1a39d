"""What a step will cost: measured cost models that size drafts and budgets."""
