"""Writes docs/results.schema.json, the JSON schema of results.json.

python scripts/results_schema.py
"""

from pathlib import Path

from donna_ray.report.results import schema

if __name__ == "__main__":
    (Path(__file__).parents[1] / "docs" / "results.schema.json").write_text(schema())
