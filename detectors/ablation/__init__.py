"""Ablations: the same training with and without a teacher, paired by seed, and what the differences say."""
