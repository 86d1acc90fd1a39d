"""Small fused CPU kernels for forwards of few rows, where calling an operator costs more than its work."""
