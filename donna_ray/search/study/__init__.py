"""What a search knows.

`problem.py` is what is searched, with its limits; `ledger.py` the candidates and their outcomes, an
Optuna study in the file that `journal.py` keeps.
"""
