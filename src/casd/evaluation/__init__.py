"""What a model does: generated text and attack success, clean loss, benchmarks."""
