"""`nnbuild export`: a run's model for a server."""

from pathlib import Path

from flows.printing import print_json, print_line
from nnbuild.scoring.export import export_run
from nnbuild.store import Store


def export(
    run_id: str,
    format: str,  # noqa: A002  (it is the option's name)
    output: Path | None,
    root: str | None,
    *,
    calibrated: bool,
    as_json: bool,
) -> None:
    """Export, and say where it is."""
    target = output or Path(f"{run_id}.onnx" if format == "onnx" else f"{run_id}-savedmodel")
    path = export_run(Store.open(root), run_id, target, format, calibrated=calibrated).absolute()
    if as_json:
        print_json(
            {"run_id": run_id, "format": format, "calibrated": calibrated, "output": str(path)}
        )
    else:
        print_line(str(path))
