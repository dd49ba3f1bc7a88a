"""The data dictionary: what each column of each table means, for docs/reference/tables.md.

The schemas have short descriptions of their own, which are stored in every file. Longer ones would
change the files.
"""

from nnbuild.store.schemas import documented

DESCRIPTIONS: dict[str, dict[str, str]] = {
    "runs": {
        "status": "`succeeded` or `failed`.",
        "error": "Reason for the failure; null if the run succeeded.",
        "started_at": "Start of the run.",
        "finished_at": "Time of the commit.",
        "dataset": "Name of the dataset that was trained on, after a fallback if there was one.",
        "dataset_digest": "SHA-256 digest of the dataset's content.",
        "model": "Name of the network, or `package.module:function`.",
        "seed": "Seed of the split, the initial weights and the order of the examples.",
        "epochs": "Number of completed epochs.",
        "test_accuracy": "Fraction of test images that were classified correctly.",
        "test_loss": "Mean cross-entropy on the test images, in nats.",
        "promoted": "Whether the run became the champion.",
        "flow_run_id": "ID of the Prefect flow run; null for a run without Prefect.",
        "code_version": "Version of nnbuild and digest of its source, with the commit if known.",
        "config": "Resolved configuration as JSON; nothing is left open.",
    },
    "history": {
        "epoch": "Epoch, counted from 1.",
        "metric": "Keras's key (`loss`, `val_accuracy`, …), `learning_rate` (of the next step), "
        "or `epoch_seconds`.",
        "value": "Value of the metric at the end of the epoch.",
        "logged_at": "End of the epoch.",
    },
    "evaluation": {
        "subset": "Always `test`.",
        "metric": "Name of the metric; see the list below.",
        "label": "Class that a per-class metric is about; null for a metric over all classes.",
        "value": "Value of the metric.",
    },
    "confusion": {
        "subset": "Always `test`.",
        "label": "True class.",
        "predicted": "Predicted class: the one with the largest logit.",
        "count": "Number of examples with this pair of classes.",
    },
    "calibration": {
        "subset": "`test` or `validation`.",
        "temperature": "Divisor of the logits; 1 is the plain softmax.",
        "expected_calibration_error": "Error over the whole subset at this temperature.",
        "bin_lower": "Lower bound of the confidence bin, exclusive.",
        "bin_upper": "Upper bound of the confidence bin, inclusive.",
        "count": "Number of examples in the bin.",
        "mean_confidence": "Mean of the largest probability in the bin; null if it is empty.",
        "accuracy": "Fraction of correct predictions in the bin; null if it is empty.",
    },
    "dataset_parts": {
        "day": "Day of the labelled images.",
        "version": "Version of the day: 1 as it was first ingested, 2 after its first correction.",
        "rows": "Number of images of the day that were used for this purpose.",
        "digest": "SHA-256 digest of the content of this version of the day.",
        "used_for": "`train`, `validation` or `test`; each image of a day is in one of them.",
        "ingested_at": "Time at which this version was ingested. A day that was late has a time "
        "that is days after it.",
    },
    "decisions": {
        "champion": "Champion that the run was compared with; null if there was none.",
        "rule": "`not-worse` or `better`.",
        "promoted": "Whether the run became the champion.",
        "outcome": "`promoted`, `rejected`, `kept-identical`, `not-enough-evidence`, `skipped` or "
        "`gate-off`; null in runs of earlier versions.",
        "reason": "Reason in one sentence.",
        "accuracy": "Accuracy of the challenger on the compared images; without a comparison, on "
        "all of its test images.",
        "champion_accuracy": "Accuracy of the champion on the compared images; null if there was "
        "no comparison.",
        "examples": "Number of test images compared; null if there was no comparison.",
        "only_champion": "Number of images that only the champion classifies correctly.",
        "only_challenger": "Number of images that only the challenger classifies correctly.",
        "p_worse": "One-sided p-value of the exact McNemar test; small if the challenger is worse.",
        "p_better": "The same in the other direction; small if the challenger is better.",
        "difference": "Accuracy of the challenger minus accuracy of the champion.",
        "low": "Lower end of the 95 % confidence interval of the difference.",
        "high": "Upper end of the 95 % confidence interval of the difference.",
        "recall_drop": "Drop in the recall of the class for which the evidence of a drop is the "
        "strongest.",
        "recall_label": "That class.",
        "recall_p": "Its one-sided p-value, corrected for the number of classes; small if the drop "
        "is larger than `gate.max_recall_drop`.",
        "margin": "Value of `gate.margin`: the largest loss of accuracy that `not-worse` allows.",
        "bound": "Lower confidence bound of the difference, at `gate.significance`.",
        "needed": "Number of test images that the decision would need; null if there were enough.",
        "anchor": "Past champion that the run was compared with as well; null if there was none.",
        "anchor_bound": "Lower confidence bound of the difference from the anchor.",
        "golden_bound": "Lower confidence bound of the difference on `gate.golden`.",
        "rescored": "Number of images that the champion's model scored for the comparison; 0 if "
        "its stored predictions were used.",
        "left_out": "Number of test images left out because either run trained or validated on "
        "them.",
        "decided_at": "Time of the decision.",
    },
    "champions": {
        "dataset": "Name of the dataset, as in `runs`.",
        "previous": "Champion before the change; null if there was none.",
        "changed_at": "Time of the change; each change of a dataset is later than the one before.",
        "changed_by": "`gate`, or a person's `promote`, `rollback` or `unpin`.",
        "who": "The person as `user@host`; null for the gate.",
        "note": "Reason of the gate, or the note of the person.",
        "pinned": "Whether the champion is pinned: the gate compares, but does not replace it.",
    },
    "score_jobs": {
        "run_id": "Run whose model scored; null for a model file.",
        "model_digest": "SHA-256 digest of the model file.",
        "input": "Input as it was given.",
        "output": "Output folder; null if the rows are in the table `scores`.",
        "rows": "Number of scored rows.",
        "written": "Number of rows written, after the filter `where`.",
        "quarantined": "Number of rows that could not be scored.",
        "engine": "`onnx` or `keras`.",
        "temperature": "Divisor of the logits; 1 is the plain softmax.",
        "started_at": "Start of the job.",
        "finished_at": "Time of the commit.",
        "day": "Day of the images: the setting `day`, or the day of `{date}`; null without both.",
        "identifier": "What identifies a row: `row` (its number), `path` (of a picture), "
        "`integer` or `text` (the column `id_column`); null in jobs of earlier versions.",
        "input_digest": "SHA-256 digest of the names, sizes and versions of the input files; null "
        "in jobs of earlier versions.",
        "shadow_run_id": "Run that scored the same rows into the table `shadow_scores`; null "
        "without a shadow.",
    },
    "classes": {
        "label": "Number of the class, from 0.",
        "name": "Name of the class.",
    },
    "labels": {
        "example_id": "Integer that identifies the example; null if that is a text.",
        "example_key": "Text that identifies the example, such as the path of a picture; null if "
        "that is an integer.",
        "score_id": "Scoring job whose input the ID belongs to; null if the ID means the same "
        "example in every job.",
        "input_digest": "Digest of that job's input, as in `score_jobs`; null without a job, and "
        "in labels of earlier versions.",
        "label": "Number of the true class in the run that scored the newest job with this ID.",
        "label_name": "Name of the true class, by which runs with other classes are compared with "
        "it; null for the rows of a model file, and in labels of earlier versions.",
        "observed_at": "Time at which the label was observed. Of several labels the newest counts.",
        "ingested_at": "Time at which the label arrived in the store.",
        "version": "Number of the label among those of its example, from 1, by arrival; decides "
        "between labels with the same `observed_at`.",
        "source": "File that the label came from.",
        "source_row": "Row of that file, from 0.",
    },
    "label_jobs": {
        "source": "File that the labels came from.",
        "digest": "SHA-256 digest of the file's content and of the columns that were read.",
        "rows": "Number of rows that were taken up: the sum of the next four columns.",
        "labelled": "Number of rows that were the first label of their example.",
        "corrected": "Number of rows that changed the label that counts.",
        "repeated": "Number of rows that left the label that counts as it was.",
        "quarantined": "Number of rows that could not be used.",
        "ingested_at": "Time of the commit.",
    },
    "slices": {
        "column_name": "Name of a column in `dataset.keep`.",
        "value": "Value of the column, as text; null for the images without one.",
        "rows": "Number of test images with this value.",
        "accuracy": "Fraction of them that were classified correctly.",
        "accuracy_low": "Lower end of Wilson's 95 % confidence interval of the accuracy.",
        "accuracy_high": "Upper end of the interval.",
        "calibration_error": "Expected calibration error of the images, at temperature 1, in 15 "
        "bins.",
        "compared": "Number of the images on which the run was compared with the champion; null "
        "without a comparison.",
        "champion_accuracy": "Accuracy of the champion on the compared images.",
        "difference": "Accuracy of the run minus the champion's, on the compared images.",
        "p_worse": "P-value of the hypothesis that the run is at most `gate.margin` less accurate "
        "than the champion: small if it is worse.",
        "p_corrected": "`p_worse` corrected by Holm's method for the number of slices: those of "
        "the columns in `gate.slices`, or those of all other columns.",
    },
    "live": {
        "period": "`day` or `week`.",
        "start": "First day of the period: the day itself, or the Monday of the week.",
        "dataset": "Dataset of the run.",
        "rows": "Number of rows that the run's model scored.",
        "labelled": "Number of these rows that have a label.",
        "accuracy": "Fraction of the labelled rows that were classified correctly; null without "
        "labels.",
        "accuracy_low": "Lower end of Wilson's 95 % confidence interval of the accuracy.",
        "accuracy_high": "Upper end of the interval.",
        "expected_calibration_error": "Calibration error of the labelled rows, at the run's "
        "temperature, in 15 bins.",
        "negative_log_likelihood": "Mean negative log-likelihood of the labels, at the run's "
        "temperature, in nats.",
        "estimated_accuracy": "Accuracy that is expected without labels: the mean calibrated "
        "confidence of all rows.",
        "estimated_accuracy_atc": "The same by average thresholded confidence: the fraction of "
        "rows with a calibrated confidence of at least the run's threshold; null for runs of "
        "earlier versions.",
        "realised_minus_estimated": "`accuracy` minus `estimated_accuracy`.",
        "computed_at": "Time of the computation.",
    },
    "live_shadows": {
        "period": "`day`, `week` or `all`: the whole time.",
        "start": "First day of the period; a week begins on Monday.",
        "dataset": "Dataset of the run.",
        "shadow_run_id": "Run that scored the same rows as a shadow.",
        "labelled": "Number of examples with a label that both have scored; each counts once, in "
        "the first job that scored it.",
        "accuracy": "Fraction of these that the run of `run_id` classifies correctly.",
        "shadow_accuracy": "Fraction of these that the shadow classifies correctly.",
        "only_champion": "Number of examples that only the run of `run_id` classifies correctly.",
        "only_challenger": "Number of examples that only the shadow classifies correctly.",
        "difference": "`shadow_accuracy` minus `accuracy`.",
        "low": "Lower end of the 95 % confidence interval of the difference.",
        "high": "Upper end of the interval.",
        "p_worse": "One-sided p-value of the exact McNemar test; small if the shadow is worse. "
        "Valid for one look.",
        "p_better": "The same in the other direction; small if the shadow is better.",
        "evidence": "Evidence that the shadow is better: an e-value, valid however often one "
        "looks.",
        "computed_at": "Time of the computation.",
    },
    "live_slices": {
        "period": "`day` or `week`.",
        "start": "First day of the period: the day itself, or the Monday of the week.",
        "column_name": "Name of a column that the scoring jobs have kept.",
        "value": "Value of the column, as text; null for the rows without one.",
        "rows": "Number of rows with this value that the run's model scored.",
        "labelled": "Number of these rows that have a label.",
        "accuracy": "Fraction of the labelled rows that were classified correctly; null without "
        "labels.",
        "accuracy_low": "Lower end of Wilson's 95 % confidence interval of the accuracy.",
        "accuracy_high": "Upper end of the interval.",
        "expected_calibration_error": "Calibration error of the labelled rows, at the run's "
        "temperature, in 15 bins.",
        "estimated_accuracy": "Accuracy that is expected without labels: the mean calibrated "
        "confidence of all rows.",
        "estimated_accuracy_atc": "The same by average thresholded confidence.",
        "realised_minus_estimated": "`accuracy` minus `estimated_accuracy`.",
        "computed_at": "Time of the computation.",
    },
    "live_alarms": {
        "event": "`dropped`, or `recovered` once the evidence is below the threshold again.",
        "at": "Time at which it was found.",
        "labelled": "Number of labelled rows of the run until then.",
        "accuracy": "Accuracy on these rows.",
        "reference": "Accuracy of the run on its test images.",
        "floor": "Accuracy that counts as a drop: the lower confidence bound of the reference, "
        "minus the margin.",
        "evidence": "Evidence that the accuracy is below the floor: an e-value.",
        "threshold": "Evidence at which the alarm is raised.",
    },
    "drift": {
        "run_id": "Run whose model scored, and whose reference the rows are compared with.",
        "measure": "`predicted`, `confidence`, `brightness`, `ink` or `energy`.",
        "statistic": "`psi` (population stability index) or `ks` (Kolmogorov–Smirnov distance).",
        "value": "Value of the statistic.",
        "threshold": "Threshold as set, or the level that chance reaches with so few rows.",
        "exceeded": "Whether the value is above the threshold.",
        "rows": "Number of scored rows that were compared.",
        "reference_rows": "Number of validation images in the reference.",
        "measured_at": "Time of the commit.",
    },
    "predictions": {
        "example_id": "Row of the image in its split or input, from 0, or its `id_column`.",
        "label": "True class; null if unknown.",
        "predicted": "Predicted class: the one with the largest logit.",
        "confidence": "Probability of the predicted class.",
        "log_prob": "Natural logarithm of that probability, from log-softmax; always finite.",
        "prob_*": "Probability of each class: `prob_0`, `prob_1`, …",
        "predicted_name": "Name of the predicted class; only if the dataset has class names.",
        "example_key": "The column `id_column` if it is a text; only in jobs with such a column.",
        "champion_predicted": "Class that the model of the job predicted for the same row, as "
        "`predicted` in `scores`.",
    },
}
"""Description of every column, by table; `predictions` describes `scores` and `shadow_scores` too.
"""


def describe(name: str) -> dict[str, str]:
    """Return the description of each column of a table, in the order of its schema.

    Args:
        name: Name of the table, one of `schemas.TABLES`.
    """
    columns = ("prob_*" if each == "prob_0" else each for each in documented(name).names)
    texts = DESCRIPTIONS["predictions" if name in ("scores", "shadow_scores") else name]
    return {each: texts[each] for each in columns}
