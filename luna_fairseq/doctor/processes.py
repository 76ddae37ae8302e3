"""Two processes train what one trains with twice the batches an update."""

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import List, Sequence

from luna_fairseq.doctor.training import compare, quiet, train, two_processes_command
from luna_fairseq.doctor.verdicts import Finding, NotTried, Wrong

TOLERANCE = 1e-4
WITHIN = 240  # seconds


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End torchrun, which ends its processes when it is told to end."""
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _run(command: List[str], log: Path) -> None:
    """Run a command that starts others; none of them is left, whatever happens here.

    Raises:
        Wrong: if it fails, with its last line, or takes too long.
    """
    with open(log, "w", encoding="utf-8") as output:
        # In a session of its own, so that an interruption from the keyboard reaches it once, from here.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout=WITHIN)
        except subprocess.TimeoutExpired:
            raise Wrong(f"the two processes were not done after {WITHIN} seconds") from None
        finally:
            _end(process)
    if code != 0:
        said = re.search(
            r"^[\w.]+(?:Error|Mismatch|Exception): .*", log.read_text(encoding="utf-8", errors="replace"), re.M
        )
        raise Wrong(f"the two processes ended with exit code {code}: {said[0] if said else 'they do not say why'}")


def check_two_processes(data: Path, folder: Path, devices: Sequence[str]) -> Finding:
    """Train on the first two GPUs, and on the first alone.

    Args:
        data: of ``training.make_data``.
        folder: gets the checkpoints and the logs.
        devices: those that are meant; "cpu" twice for two processes on the CPU.

    Raises:
        NotTried: if there is one device.
        Wrong: if the weights differ.
    """
    import torch

    if len(devices) < 2:
        raise NotTried("one device" if devices else "no GPU")
    save_dir = folder / "two"
    _run(two_processes_command(data, save_dir, devices[0]), folder / "two.log")
    two = torch.load(save_dir / "checkpoint_last.pt", map_location="cpu")
    with quiet(folder / "one.log"):
        one = train(data, folder / "one", devices[0], 2, "--dropout", "0", "--update-freq", "2")
    worst = compare(two["model"], one["model"], TOLERANCE)
    text = f"two updates of two processes are those of one with twice the batches, to {worst:.1g}"
    return Finding(f"{text} ({TOLERANCE:g} is allowed)", {"difference": worst})
