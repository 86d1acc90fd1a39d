"""Which requests and rows share a forward."""
