"""Activations of a model: forward hooks on its decoder blocks, and streamed statistics."""
