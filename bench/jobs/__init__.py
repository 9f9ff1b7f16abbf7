"""The same job for other tools, each a script that runs in that tool's own environment and imports nothing of ours."""
