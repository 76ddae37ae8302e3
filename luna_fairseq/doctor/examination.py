"""All checks in their order, in a temporary folder that is gone afterwards."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from luna_fairseq.doctor import attention, cost, figures, machine, processes, repairs, training
from luna_fairseq.doctor.verdicts import Finding, Verdict, attempt

CACHE = "TORCHINDUCTOR_CACHE_DIR"  # torch makes this folder when it is imported as a whole


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder for all that is written, torch's cache included."""
    before = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory(prefix="luna-doctor-") as name:
        os.environ[CACHE] = os.path.join(name, "torch")
        try:
            yield Path(name)
        finally:
            if before is None:
                del os.environ[CACHE]
            else:
                os.environ[CACHE] = before


def examine(wanted: Sequence[str]) -> Iterator[Verdict]:
    """Do all checks, one at a time.

    Args:
        wanted: names of devices; all if there is none.
    """
    yield attempt("versions", machine.check_versions)
    devices = ["cpu"]  # where torch cannot even say what there is, everything else says what is wrong with it

    def look() -> Finding:
        devices[:] = machine.chosen(wanted)
        return machine.check_devices(devices)

    yield attempt("devices", look)
    with _temporary_folder() as folder:
        yield attempt("repairs of fairseq", repairs.check_repairs)
        for device in devices:
            for dtype in machine.DTYPES:
                name = f"attention, {device}, {dtype}"
                yield attempt(name, lambda: attention.check_attention(device, dtype))  # noqa: B023
        yield from _trainings(folder, devices)
        for device in devices:
            yield attempt(f"time and memory, {device}", lambda: cost.check_cost(device))  # noqa: B023
            if device != "cpu":  # the figures are of a GPU
                yield attempt(f"figures on paper, {device}", lambda: figures.check_figures(device))  # noqa: B023


def _trainings(folder: Path, devices: Sequence[str]) -> Iterator[Verdict]:
    data = folder / "data"

    def make_data() -> Finding:
        training.make_data(folder)
        return Finding(f"{sum(training.SIZES.values())} made-up sentences")

    made = attempt("data", make_data)
    yield made
    for device in devices:
        place = folder / device.replace(":", "-")
        place.mkdir()
        yield attempt(f"training, {device}", lambda: training.check_training(data, place, device))  # noqa: B023
        yield attempt(f"generation, {device}", lambda: training.check_generation(data, place, device))  # noqa: B023
    gpus = [device for device in devices if device != "cpu"]
    yield attempt("two processes", lambda: processes.check_two_processes(data, folder, gpus))
