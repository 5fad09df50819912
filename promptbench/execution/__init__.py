"""Who runs trials: one process, several, or a Ray cluster."""
