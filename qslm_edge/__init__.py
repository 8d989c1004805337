"""qslm-edge: deploy quantised spike-driven language models to boards, and prove that they run there."""

__all__ = ["__version__"]

__version__ = "0.1.0"
