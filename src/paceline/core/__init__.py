"""The vocabulary every room shares: requests, trees, batches, verdicts, guarantees. Nothing here imports another room."""
