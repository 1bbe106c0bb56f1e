"""What the measurements of a run, and of several runs, say: suppression, relation, comparison, predictors."""
