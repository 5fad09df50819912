"""Training and evaluation of one trial."""
