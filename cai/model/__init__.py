"""Models on disk: the embedded default, and adapters merged into full checkpoints."""
