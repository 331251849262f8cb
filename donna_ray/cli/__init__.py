"""The command line, `donna`: prints what the rooms below find, and has no logic of its own.

Entry: `main` in `main.py`, with the commands of the steps. `library.py` and `plan.py` have theirs,
`options.py` the options that several share, `tables.py` prints facts as tables. Every command also
prints JSON (`--json`). torch and Ray are imported once the configuration is read.
"""
