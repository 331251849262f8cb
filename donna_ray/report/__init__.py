"""Step 6: results.json, the truth about a run, and report.html, a view of it.

Entry: `report_step` in `step.py`. `results.py` has the schema of results.json (docs/results-json.md
explains it), `predicted.py` the predictions in it, `html.py` draws the page from results.json
alone, with `fronts.py` for a scenario and `parts.py` for sections, plots and tables; `headline.py`
says which network to take.
"""
