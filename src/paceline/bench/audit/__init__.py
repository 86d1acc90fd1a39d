"""The audit: checks that a method keeps the promise it declares, and that the checks themselves would notice if it did not."""
