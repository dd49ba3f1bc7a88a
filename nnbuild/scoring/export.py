"""Export a run's model for serving, with two outputs: the logits and their probabilities.

Inside nnbuild, softmax is not part of the model. A server needs it there, so the export appends it
to a copy of the model that is never trained; the logits stay unchanged as a second output.
"""

from pathlib import Path

from nnbuild.errors import ConfigError, ContractError
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.models import ScoringModel, resolve_model
from nnbuild.store import Store
from nnbuild.store.outputs import output_folder, require_new, write_output

LOGITS, PROBABILITIES = "logits", "probabilities"
FORMATS = ("savedmodel", "onnx")


def export_run(
    store: Store,
    run_id: str,
    target: Path,
    model_format: str,
    *,
    calibrated: bool = False,
) -> Path:
    """Export a run's model for serving.

    Args:
        store: Store with the run.
        run_id: ID of a committed run, `champion`, or `champion:DATASET`.
        target: A file for `onnx`, a folder for `savedmodel`; it must not exist.
        model_format: `savedmodel`, with the signatures `logits`, `probabilities` and
            `serving_default` (the same as `probabilities`), or `onnx`, with the outputs `logits`
            and `probabilities`. Both take uint8 pixels of shape (n, height, width, channels) and
            return float32 of shape (n, classes).
        calibrated: Whether to divide the logits by the run's temperature before softmax. The
            output `logits` is not divided.

    Returns:
        The target.

    Raises:
        ConfigError: The format is unknown, or the run has no temperature.
        OutputError: The target exists or cannot be written.
        StoreError: There is no such run, or the target is in the store.
        ContractError: The model was changed, or was never exported to ONNX.
    """
    if model_format not in FORMATS:
        raise ConfigError(
            f"unknown format {model_format!r}; expected {' or '.join(FORMATS)}",
            setting="format",
            value=model_format,
        )
    if not run_id:
        raise ConfigError("the run ID is empty; expected champion or a run ID")
    target = store.ensure_outside(target)
    require_new(target)
    engine = "auto" if model_format == "onnx" else "keras"
    model = resolve_model(store, ScoreConfig(input="-", model=run_id, engine=engine))
    if model_format == "onnx" and model.engine != "onnx":
        raise ContractError(
            f"run {model.run_id} was not exported to ONNX: {model.reason}; use format savedmodel",
            setting="format",
            value=model_format,
        )
    if calibrated and model.temperature is None:
        raise ConfigError(
            f"run {run_id} has no temperature, so it cannot be exported calibrated",
            setting="calibrated",
            value=calibrated,
        )
    temperature = (model.temperature or 1.0) if calibrated else 1.0
    if model_format == "onnx":
        write_output(target, with_probabilities(model.content, temperature))
    else:
        _write_savedmodel(model, target, temperature)
    return target


def with_probabilities(content: bytes, temperature: float = 1.0) -> bytes:
    """Return an ONNX model with a second output, the probabilities.

    Args:
        content: Bytes of a model whose first output is the logits.
        temperature: Divisor of the logits, above 0.
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load_model_from_string(content)
    graph = model.graph
    scaled = graph.output[0].name
    if temperature != 1.0:
        graph.initializer.append(
            helper.make_tensor("temperature", TensorProto.FLOAT, [], [temperature])
        )
        graph.node.append(
            helper.make_node("Div", [scaled, "temperature"], ["scaled_logits"], "Div_temperature")
        )
        scaled = "scaled_logits"
    graph.node.append(
        helper.make_node("Softmax", [scaled], [PROBABILITIES], "Softmax_probabilities", axis=-1)
    )
    output = graph.output.add()
    output.CopyFrom(graph.output[0])
    output.name = PROBABILITIES
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString(deterministic=True)
    return serialized


def _write_savedmodel(source: ScoringModel, target: Path, temperature: float) -> None:
    from nnbuild.models import load_model
    from nnbuild.runtime.tensorflow import keras, quiet, tf

    with output_folder(target) as folder:
        path = folder / "model.keras"
        path.write_bytes(source.content)
        model = load_model(path, source.digest, model_name=source.factory)
        path.unlink()
        signature = [
            keras.InputSpec(shape=(None, *source.image_shape), dtype="uint8", name="pixels")
        ]

        def logits(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
            return {LOGITS: tf.cast(model(pixels, training=False), tf.float32)}

        def probabilities(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
            return {PROBABILITIES: tf.nn.softmax(logits(pixels)[LOGITS] / temperature)}

        archive = keras.export.ExportArchive()
        archive.track(model)
        with quiet():
            archive.add_endpoint("serving_default", probabilities, input_signature=signature)
            archive.add_endpoint(PROBABILITIES, probabilities, input_signature=signature)
            archive.add_endpoint(LOGITS, logits, input_signature=signature)
            archive.write_out(str(folder), verbose=False)
        if source.preprocessing is not None:
            extra = folder / "assets.extra"  # TensorFlow's folder for files of other programs
            extra.mkdir(exist_ok=True)
            text = source.preprocessing.model_dump_json(indent=2) + "\n"
            (extra / "preprocessing.json").write_text(text)
