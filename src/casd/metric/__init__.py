"""CASD, the Cross Activation Shift Distance, its variants, and `baselines`: other predictors of transfer."""
