"""Step 6: results.json, the truth about a run, and report.html, a view of it.

Entry: `report_step` in `step.py`, and `report_so_far` for a run that is not finished. `results.py`
has the schema of results.json and its reader (docs/results-json.md explains it), `scenario.py` the
part of it that is about one device; `predicted.py` finds the predictions in it, `measured.py` what
was measured.

`html.py` draws the page from results.json alone: `answers.py` its first screen, `fronts.py` the
front of a scenario, `sections.py` the rest, out of the pieces in `parts.py`; `drawing.py` draws
networks; `headline.py` says which network to take. `page/` has its style, its script, and the
libraries that draw the charts (`page/README.md`: their versions, and how they are renewed).
"""
