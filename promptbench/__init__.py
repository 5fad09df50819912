"""promptbench: prompt learning on CLIP, one engine, one evaluation harness, tables from records.

Nothing is imported here, so that ``promptbench --help`` answers at once.
"""

__version__ = "0.1.0"
