"""`python -m sdm_cli`: the same program, for `accelerate launch -m sdm_cli train ...`."""

from sdm_cli.cli import main

if __name__ == "__main__":
    main()
