"""`python -m casd`, and so `accelerate launch -m casd …`: the command line."""

from casd.cli.main import main

main()
