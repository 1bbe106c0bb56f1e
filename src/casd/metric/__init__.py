"""CASD, the Cross Activation Shift Distance: its variants, and `baselines`, what else could predict transfer."""
