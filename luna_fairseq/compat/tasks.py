"""fairseq's own tasks with their data checked: they are in ``luna_fairseq/tasks``, and declare themselves here."""

from typing import Any

from luna_fairseq.compat._replace import Repair, add, replace


def replace_task(task: Any, name: str, *, fairseq: str, here: str, since: str = "fairseq 0.12.3") -> None:
    """Put a task in the place of fairseq's; :func:`luna_fairseq.compat.prepare` must have been called.

    Args:
        task: derived from fairseq's.
        name: under which fairseq has registered its own.
        fairseq: what fairseq 0.12.3 does, in one line.
        here: what happens here, in one line.
        since: the version that made the repair necessary.
    """
    act = replace("fairseq.tasks.TASK_REGISTRY", name, lambda original: task)
    add(Repair(task.__name__, "tasks", f"--task {name}", fairseq, here, since, act)).switch_on()


def extend_task(task: Any, name: str, dataclass: Any) -> None:
    """Give a task of fairseq's more options, everywhere: this is no repair, and stays.

    Args:
        task: derived from fairseq's.
        name: under which fairseq has registered its own.
        dataclass: of its options, derived from fairseq's.
    """
    from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY
    from hydra.core.config_store import ConfigStore

    setattr(task, "__dataclass", dataclass)
    TASK_REGISTRY[name], TASK_DATACLASS_REGISTRY[name] = task, dataclass
    node = dataclass()
    node._name = name
    ConfigStore.instance().store(name=name, group="task", node=node, provider="fairseq")
