"""Published numbers (published.csv, installed as promptbench.results) and reference records."""
