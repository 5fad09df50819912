"""All records of a results folder as one table, without any judgement on what can be compared."""

from pathlib import Path

import pandas as pd

from promptbench.trials.record import BriefRecord, Fault, each_record

COLUMNS = (
    *("benchmark", "backbone", "method", "variant", "source", "dataset", "classes", "split", "limit"),
    *("shots", "seed", "correct", "total", "accuracy", "parameters", "seconds", "memory", "hash", "folder"),
)


def tidy(out: Path) -> pd.DataFrame:
    """One row per evaluation of a trial; accuracy in percent, seconds of training, peak memory in bytes.

    Raises UserError for a record that cannot be read.
    """
    rows = []
    for folder, record in each_record(out, BriefRecord):
        if isinstance(record, Fault):
            raise record.error
        trial = record.trial
        for one in record.evaluations:
            values = (
                *(trial.benchmark, trial.backbone, trial.method, trial.variant, trial.dataset),
                *(one.dataset, one.classes, one.split, trial.limit, trial.shots, trial.seed),
                *(one.correct, one.total, one.accuracy, record.trainable_parameters),
                *(record.seconds.train, record.peak_memory_bytes, record.hash, folder),
            )
            rows.append(dict(zip(COLUMNS, values, strict=True)))
    return pd.DataFrame(rows, columns=list(COLUMNS))
