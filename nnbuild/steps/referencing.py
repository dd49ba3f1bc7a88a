"""The reference of a run: counts of the validation images and their scores, which later scores are held against."""

from typing import Any

from nnbuild.data.dataset import Split
from nnbuild.drift import REFERENCE, Summary, summarise
from nnbuild.engines import Logits
from nnbuild.logits import predict
from nnbuild.store.files import write_json
from nnbuild.store.run import Run


def write_reference(run: Run, split: Split, logits: Logits, temperature: float) -> None:
    """Keep what validation images look like to the network, as plain softmax has it and as calibrated.

    Args:
        run: in staging.
        split: the validation images.
        logits: float32, shape (n, classes), of these.
        temperature: that was fitted on them.
    """
    of = {"plain": _summary(split, logits, 1.0), "calibrated": _summary(split, logits, temperature)}
    record: dict[str, Any] = {
        "subset": "validation",
        "rows": len(split),
        "temperature": temperature,
    }
    write_json(run.folder / REFERENCE, record | {name: each.as_json() for name, each in of.items()})


def _summary(split: Split, logits: Logits, temperature: float) -> Summary:
    probabilities, predicted, _ = predict(logits, temperature=temperature)
    return summarise(split.images, predicted, probabilities.max(axis=0), logits.shape[1])
