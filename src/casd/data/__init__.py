"""Text and tokens: corpora, encoding, the token table, batches."""
