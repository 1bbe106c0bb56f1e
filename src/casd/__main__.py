"""`python -m casd`, and so `accelerate launch -m casd …`: the command line."""

from casd.cli import main

main()
