"""fairseq's own tasks: those with their data checked are in ``luna_fairseq/tasks``, and declare themselves here."""

import collections
from typing import Any, Dict

from luna_fairseq.compat._replace import Repair, add, replace, replaces


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


@replaces(
    "fairseq.tasks.translation_from_pretrained_bart.TranslationFromPretrainedBARTTask",
    "__init__",
    fairseq="the task `translation_from_pretrained_bart` asks for its options by a name that it no longer has",
    here="it has both names",
    since="fairseq 0.12.0",
)
def keep_both_names(original: Any, self: Any, args: Any, *dictionaries: Any) -> None:
    self.args = args
    original(self, args, *dictionaries)


@replaces(
    "fairseq.tasks.semisupervised_translation.SemisupervisedTranslationTask",
    "train_step",
    fairseq="`semisupervised_translation` ends at the first update: it adds to sums that it did not begin",
    here="they begin at 0",
    since="fairseq 0.12.0",
)
def begin_sums(original: Any, self: Any, sample: Any, model: Any, criterion: Any, *args: Any, **kwargs: Any) -> Any:
    sums: Dict[str, Any] = collections.defaultdict(float)

    def without_sums(*inputs: Any, **more: Any) -> Any:
        loss, sample_size, logged = criterion(*inputs, **more)
        for name, value in logged.items():
            sums[name] += value
        return loss, sample_size, {}

    loss, sample_size, _ = original(self, sample, model, without_sums, *args, **kwargs)
    return loss, sample_size, sums


@replaces(
    "fairseq.tasks.multilingual_translation.MultilingualTranslationTask",
    "build_model",
    fairseq="`multilingual_translation` with a model for one pair of languages ends in a traceback about lang_pairs",
    here="the architecture is named, and one that will do",
    since="fairseq 0.12.0",
)
def want_an_architecture_for_pairs(original: Any, self: Any, args: Any, from_checkpoint: bool = False) -> Any:
    from omegaconf import DictConfig

    if isinstance(args, DictConfig) and "lang_pairs" not in args:  # of a dataclass, and so without the task's options
        raise ValueError(
            f"--arch is {args.get('_name')} and --task multilingual_translation trains a model for each pair: "
            "take --arch multilingual_luna or multilingual_transformer"
        )
    return original(self, args, from_checkpoint)
