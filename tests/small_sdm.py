"""`sdm` in a process of its own, with the small networks of the tests: python tests/small_sdm.py COMMAND ..."""

from models import use_least_encoder

from sdm_cli.cli import main

use_least_encoder()  # also in the processes that this one starts

if __name__ == "__main__":
    main()
