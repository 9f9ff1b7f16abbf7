"""The conductor: the order of phases, the owner of the run's folder, and the only one who writes there."""
