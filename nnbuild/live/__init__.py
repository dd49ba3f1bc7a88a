"""Live accuracy: labels that arrive after scoring, accuracy and its estimate, and the alarm.

label_files.py    find and read files of labels
jobs.py           scoring jobs, and what identifies their rows
ingestion.py      add labels to the table `labels`, each file once
performance.py    compute the table `live`
alarm.py          evidence of a drop, and the table `live_alarms`
"""

from nnbuild.live.alarm import Alarm, LiveConfig, alarms, record, watch
from nnbuild.live.ingestion import Ingested, ingest
from nnbuild.live.label_files import LabelConfig
from nnbuild.live.performance import (
    Performance,
    measure,
    measure_slices,
    write,
    write_slices,
)

__all__ = [
    "Alarm",
    "Ingested",
    "LabelConfig",
    "LiveConfig",
    "Performance",
    "alarms",
    "ingest",
    "measure",
    "measure_slices",
    "record",
    "watch",
    "write",
    "write_slices",
]
