"""The names of the files in a trial's folder."""

from typing import Final, Literal

RECORD: Final = "record.json"
CONFIG: Final = "config.yaml"
METRICS: Final = "metrics.jsonl"
PROMPTS: Final = "prompts.safetensors"
PREDICTIONS: Final = "predictions.safetensors"
CHECKPOINT: Final = "checkpoint.pt"  # only until the record is written
SideFile = Literal["config.yaml", "metrics.jsonl", "prompts.safetensors", "predictions.safetensors"]
#: what lies beside a record, in the order it is written; the record comes last
FILES: tuple[SideFile, ...] = (CONFIG, METRICS, PROMPTS, PREDICTIONS)
