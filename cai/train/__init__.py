"""Training: rows, losses, and thin subclasses of TRL's trainers. Heavy libraries are imported here and nowhere above."""
