"""What became of the scored rows: late labels, live accuracy, its estimate, and the alarm.

label_files.py    files of labels at an address
jobs.py           scoring jobs, and what identifies their rows
ingestion.py      labels into the table `labels`, each file once
performance.py    the table `live`
alarm.py          evidence of a drop, and the table `live_alarms`
"""

from nnbuild.live.alarm import Alarm, LiveConfig, alarms, record, watch
from nnbuild.live.ingestion import Ingested, ingest
from nnbuild.live.label_files import LabelConfig
from nnbuild.live.performance import Performance, measure, write

__all__ = [
    "Alarm",
    "Ingested",
    "LabelConfig",
    "LiveConfig",
    "Performance",
    "alarms",
    "ingest",
    "measure",
    "record",
    "watch",
    "write",
]
