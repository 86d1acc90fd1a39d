"""Dense rectangular caches for fixed-shape backends: batches whose rows accept unequally, brought back into line between forwards."""
