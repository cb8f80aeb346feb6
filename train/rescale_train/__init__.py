"""Training of invertible image rescaling networks: models, data, losses, checkpoints and shipped weights."""
