"""Live accuracy: labels that arrive after scoring, accuracy and its estimate, and the alarm.

label_files.py     find and read files of labels
jobs.py            scoring jobs, and what identifies their rows
ingestion.py       add labels to the table `labels`, each file once
label_matching.py  find the scored row of each label
performance.py     compute the table `live`
shadows.py         compute the table `live_shadows`: models and their shadows on the same labels
promotion.py       promote a shadow that is shown to be more accurate
alarm.py           evidence of a drop, and the table `live_alarms`
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
from nnbuild.live.promotion import LiveDecision, promote_if_better
from nnbuild.live.shadows import measure_shadows, paired_counts, write_shadows

__all__ = [
    "Alarm",
    "Ingested",
    "LabelConfig",
    "LiveConfig",
    "LiveDecision",
    "Performance",
    "alarms",
    "ingest",
    "measure",
    "measure_shadows",
    "measure_slices",
    "paired_counts",
    "promote_if_better",
    "record",
    "watch",
    "write",
    "write_shadows",
    "write_slices",
]
