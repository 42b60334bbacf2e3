"""The verbs: each module carries out one command of the program."""
