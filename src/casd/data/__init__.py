"""Text and tokens: corpora, encoding, the table of tokens, batches."""
