"""Decoding: unknown words and their alignments, attention for who reads it, diverse beams."""

from typing import Any

from luna_fairseq.compat._replace import replaces


@replaces(
    "fairseq.utils",
    "replace_unk",
    fairseq="looks a target position up in a list of (source, target) pairs, and ends with a TypeError or IndexError",
    here="--replace-unk takes the aligned word, and says what to add if there is no alignment",
    since="fairseq 0.12.3",
)
def replace_aligned_words(
    original: Any, hypo_str: str, src_str: str, alignment: Any, align_dict: Any, unk: str
) -> str:
    hypo_tokens = hypo_str.split()
    if unk not in hypo_tokens:
        return hypo_str
    end = len(src_str.split())  # stands for "no word", as in fairseq
    if end == 0:
        return str(original(hypo_str, src_str, [end] * len(hypo_tokens), align_dict, unk))
    if len(alignment) == 0:
        raise ValueError("--replace-unk needs to know which source word to take: add --print-alignment")
    if len(alignment) > len(hypo_tokens) + 1:
        raise ValueError("--replace-unk works on pieces, and these were joined to words: leave out --post-process")
    if isinstance(alignment[0], tuple):
        source_of = {target: source for source, target in alignment}
    else:  # --print-alignment soft: a row of weights a target word, the last one for the end symbol
        rows = [[float(weight) for weight in row] for row in alignment]
        source_of = {i: max(range(len(row) - 1), key=row.__getitem__) for i, row in enumerate(rows)}
    sources = [source_of.get(i, end) for i in range(len(hypo_tokens))]
    return str(original(hypo_str, src_str, sources, align_dict, unk))


@replaces(
    "fairseq.dataclass.FairseqDataclass",
    "_get_argparse_const",
    fairseq='takes "@@ " for the name of a dictionary where --replace-unk has no value, and ends as it is not there',
    here="--replace-unk without a value copies the aligned word",
    since="fairseq 0.12.3",
)
def replace_without_a_dictionary(original: Any, self: Any, attribute_name: str) -> Any:
    const = original(self, attribute_name)
    return "" if attribute_name == "replace_unk" and const == "@@ " else const


@replaces(
    "fairseq.sequence_generator.EnsembleModel",
    "__init__",
    fairseq="tells a model by a flag of its own whether decoding needs the attention, for all who decode with it",
    here="who reads the attention has it computed for himself: printed alignments, ensembles with other models",
    since="fairseq 0.12.3",
)
def compute_attention_for_its_reader(original: Any, self: Any, models: Any) -> None:
    from fairseq.sequence_generator import EnsembleModelWithAlignment

    # The attention of an ensemble is the mean over all of its models.
    can_do_without = [hasattr(model, "with_attention") for model in models]
    if isinstance(self, EnsembleModelWithAlignment) or not all(can_do_without):
        models = [
            model.with_attention(True) if can else model for model, can in zip(models, can_do_without, strict=True)
        ]
    original(self, models)


@replaces(
    "fairseq.sequence_generator.EnsembleModel",
    "reorder_incremental_state",
    fairseq="does not say that rows of a beam stay within their sentence, and who wants to know waits for the GPU",
    here="says so: no step of a beam search looks at the order of its rows",
    since="fairseq 0.12.3",
)
def say_that_rows_stay(original: Any, *args: Any) -> Any:
    from luna_fairseq.ops import rows_stay_in_sentences

    with rows_stay_in_sentences():
        return original(*args)


@replaces(
    "fairseq.sequence_generator.EnsembleModel",
    "reorder_encoder_out",
    fairseq="the same, to the encoder",
    here="the same",
    since="fairseq 0.12.3",
)
def say_that_sentences_stay(original: Any, *args: Any) -> Any:
    return say_that_rows_stay(original, *args)


@replaces(
    "fairseq.search.DiverseBeamSearch",
    "step",
    fairseq="takes a sentence's number for its place in the batch: --diverse-beam-groups ends with an IndexError",
    here="--diverse-beam-groups finds the place of each sentence",
    since="fairseq 0.12.3",
)
def find_sentences_of_diverse_beams(
    original: Any,
    self: Any,
    step: int,
    lprobs: Any,
    scores: Any,
    prev_output_tokens: Any = None,
    original_batch_idxs: Any = None,
) -> Any:
    if original_batch_idxs is not None:
        if step == 0:
            self.first_batch_idxs = original_batch_idxs
        # Sentences that are done have left the batch, and the sums of all stay in the order of the first step.
        places = original_batch_idxs.unsqueeze(1).eq(self.first_batch_idxs)
        original_batch_idxs = places.int().argmax(dim=1)
    return original(self, step, lprobs, scores, prev_output_tokens, original_batch_idxs)


def refuse_training(mode: bool = True) -> None:
    """What stands in the place of a model's ``train`` when it was made fast for generation.

    Raises:
        RuntimeError: if it is to train.
    """
    if mode:
        raise RuntimeError("the model was made for generation and cannot be trained: load it once more for that")


@replaces(
    "fairseq.models.BaseFairseqModel",
    "make_generation_fast_",
    fairseq="leaves a local function on a model of the hub, which therefore cannot be pickled",
    here="it is a function of a module, and the model can be pickled",
    since="fairseq 0.12.3",
)
def leave_no_local_function(original: Any, self: Any, **kwargs: Any) -> None:
    original(self, **kwargs)
    if "train" in vars(self):
        self.train = refuse_training


@replaces(
    "fairseq.tasks.fairseq_task.StatefulContainer",
    "__getattr__",
    fairseq="looks into the state of a task that is being copied, and does so for ever",
    here="a task, and with it a hub, can be copied",
    since="fairseq 0.12.3",
)
def look_up_what_is_there(original: Any, self: Any, name: str) -> Any:
    if name.startswith("_"):  # its own, which are found where they are
        raise AttributeError(name)
    return original(self, name)
