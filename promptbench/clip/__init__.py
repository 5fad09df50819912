"""The frozen backbone: weights, towers, tokens, cached features."""
