"""Models that name their inner tensors."""
