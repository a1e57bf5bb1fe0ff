"""The fuzz suite: public functions with valid and mutated arguments, readers with mutated files.

`python -m tests.fuzz --runs 50000` prints a table of the outcomes. `kernels` and `library` list the
functions with generators of valid arguments, `roles` the mutations of an argument by what it is,
`files` the kinds of files. A case is a few numbers, so that it can be repeated from its line.
"""
