"""tfkd: teach a small Transformer from a large one, and prove what is shipped."""

__version__ = "0.2.0"
