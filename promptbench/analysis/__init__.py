"""From records to numbers: statistics, summaries, comparisons. Reads records only."""
