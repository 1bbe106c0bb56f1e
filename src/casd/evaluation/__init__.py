"""Evaluation of a model: attack success on generated text, clean loss, and benchmarks."""
