"""Constitutional AI from one YAML file: generate, judge, audit, train."""

__version__ = "0.1.0"
