"""Training: recipes as data, objectives, the loop, checkpoints and logs."""
