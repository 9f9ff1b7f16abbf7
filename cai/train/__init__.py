"""Training: rows, losses, and thin subclasses of TRL's trainers."""
