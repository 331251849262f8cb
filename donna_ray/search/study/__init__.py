"""What a search knows: ``problem.SearchProblem`` (what is searched, and its limits) and
``ledger.Ledger`` (candidates and their outcomes, an Optuna study in a journal file).
"""
