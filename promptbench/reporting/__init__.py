"""From numbers to tables, sentences, figures and the report."""
