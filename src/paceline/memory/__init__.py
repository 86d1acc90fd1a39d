"""What is remembered between forwards, and where: token slots, prefix sharing, the allocation ledger."""
