"""One run (`run`), its stages (`graph`, `stages`), the stages on disk (`store`), and many runs (`sweep`)."""
