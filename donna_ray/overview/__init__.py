"""Looking at runs and hosts from outside: nothing here trains, measures or changes a run.

`status.py` says how far a run is (`donna status`), `compare.py` what differs between two
(`donna compare`), `dry.py` what a run would do (`donna run --dry-run`), `doctor.py` whether this
host can do it (`donna doctor`). All give facts as plain JSON.
"""
