"""Who judges: rules that turn a tree and the target's logits into the tokens to keep."""
