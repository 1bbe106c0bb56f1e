"""Analysis of one or several runs: suppression, relation to CASD, comparison of objectives, predictors."""
