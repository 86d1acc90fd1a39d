"""What network computes: one decoder described by data, and the tables that map released checkpoints onto it."""
