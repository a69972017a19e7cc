"""A program is a loop over named graphs; one file each, with `run` and, where it takes any, `PARAMS`."""
