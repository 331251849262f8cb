"""The command line, `donna`: prints what the rooms below find, and has no logic of its own.

Entry: `main` in `main.py`, with the commands of the steps. `start.py` has those for before the
first run, `results.py` those for what a run has made, `library.py` and `plan.py` their own;
`options.py` has the options that several share, `tables.py` prints facts as tables. Commands that
tell facts print JSON, too (`--json`). torch and Ray are imported once the configuration is read.
"""
