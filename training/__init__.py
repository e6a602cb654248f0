"""A training run: its steps, its folder, and how it goes on."""
