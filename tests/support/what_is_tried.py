"""What is tried for docs/what-works.md: every task, criterion, optimizer, schedule and option. See what_works.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, List, Tuple

import fairseq

from support.running import CHOICE, MASKED_LM, PAIRS, TINY, TINY_BERT, TRAIN

_EXAMPLES = Path(fairseq.__file__).parent / "examples"
_TINY_LM = (
    "--decoder-embed-dim 16 --decoder-ffn-embed-dim 32 --decoder-layers 2 --decoder-attention-heads 2 "
    "--projection-length 4 --task language_modeling --tokens-per-sample 24"
).split()
_STEP = (
    "--batch-size 6 --cpu --seed 3 --log-format simple --log-interval 1 --data-buffer-size 0 --num-workers 0".split()
)


@dataclass(frozen=True)
class Family:
    """A model and what it is compared with.

    Args:
        arch: ours.
        other: fairseq's, which knows no ``--projection-length``.
        data: which of the folders of :class:`support.what_works.Data`.
        options: of the tiny model, its task and criterion.
    """

    arch: str
    other: str
    data: str
    options: Tuple[str, ...]


TRANSLATION = Family("luna", "transformer", "pairs", (*TINY, *TRAIN))
SEVERAL = Family("multilingual_luna", "multilingual_transformer", "several", (*TINY, *TRAIN))
MASKED = Family("luna_base_512", "roberta_base", "shards", (*TINY_BERT, *MASKED_LM, *_STEP))
LABELLED = Family("luna_base_512", "roberta_base", "labelled", (*TINY_BERT, *PAIRS, *_STEP))
CHOOSING = Family("luna_base_512", "roberta_base", "choice", (*TINY_BERT, *CHOICE, *_STEP))
LANGUAGE = Family("luna_lm", "transformer_lm", "shard", (*_TINY_LM, *_STEP))


@dataclass(frozen=True)
class Case:
    """One row.

    Args:
        table: the heading that it is under.
        name: what is tried: a task, a criterion, or the options.
        family: the model.
        options: what is added to the command.
        without: options of the family's that are left out, with their values.
        data: another folder than the family's; "none" for a task that makes its own.
        command: what is run; decoding takes a trained model.
    """

    table: str
    name: str
    family: Family
    options: Tuple[str, ...] = ()
    without: Tuple[str, ...] = ()
    data: str = ""
    command: str = "fairseq-train"


def _split(text: str) -> Tuple[str, ...]:
    return tuple(text.split())


_SMOOTHING = ("--label-smoothing",)
_WITH_PLUGIN = "luna-fairseq run fairseq-train"  # where --user-dir names another folder
_DENOISING = (
    "--mask 0.3 --mask-length span-poisson --poisson-lambda 3 --permute-sentences 0 --rotate 0 --replace-length 1 "
    "--tokens-per-sample 32 --criterion cross_entropy --batch-size 8"
)
_BOTH_WAYS = "--lang-pairs en-de,de-en"


def _tasks() -> Iterator[Case]:
    def case(name: str, options: str = "", family: Family = TRANSLATION, data: str = "", without: str = "") -> Case:
        smoothing = _SMOOTHING if "--criterion" in options and family is TRANSLATION else ()
        return Case("tasks", name, family, _split(f"--task {name} {options}"), (*_split(without), *smoothing), data)

    yield case("translation")
    yield case(
        "translation_multi_simple_epoch", f"--langs en,de {_BOTH_WAYS} --encoder-langtok src --decoder-langtok"
    )
    yield case("translation_from_pretrained_bart", "--langs en,de")
    yield case("translation_from_pretrained_xlm")
    yield case("translation_lev", "--noise random_delete --criterion nat_loss")
    yield case("multilingual_translation", _BOTH_WAYS, SEVERAL)
    denoised = f"{_BOTH_WAYS} --lambda-otf-bt-config 1.0 --lambda-denoising-config 0.5"
    yield case("semisupervised_translation", denoised, SEVERAL)
    yield case("online_backtranslation", "--mono-langs en,de --valid-lang-pairs en-de", data="several")
    for method in ("sMoElp", "sMoEup", "hMoElp", "hMoEup"):
        gate = " --mean-pool-gating-network" if method.endswith("lp") else ""
        name = f"translation_moe --num-experts 2 --method {method}{gate}"
        options = _split(f"--user-dir {_EXAMPLES}/translation_moe/translation_moe_src --task {name}")
        yield Case("tasks", name, TRANSLATION, options, command=_WITH_PLUGIN)
    yield case("denoising", _DENOISING, data="text")
    yield case("multilingual_denoising", f"{_DENOISING} --langs en,de --add-lang-token", data="texts")
    yield case("span_masked_lm", "--tokens-per-sample 32 --criterion cross_entropy --batch-size 8", data="text")
    made = "--dict-size 50 --dataset-size 20"
    yield case("dummy_mt", f"{made} --src-len 8 --tgt-len 7 --batch-size 4", data="none")
    yield case("simul_text_to_text")
    yield case("masked_lm", family=MASKED)
    yield case("multilingual_masked_lm", family=MASKED, data="languages")
    yield case("sentence_prediction", family=LABELLED)
    yield Case(
        "tasks", "sentence_prediction --regression-target", LABELLED,
        ("--num-classes", "1", "--regression-target"), data="numbers",
    )  # fmt: skip
    yield case("sentence_prediction_adapters", "--criterion sentence_prediction_adapters", LABELLED)
    yield case("sentence_ranking", family=CHOOSING)
    yield case("dummy_masked_lm", f"{made} --tokens-per-sample 40", MASKED, "none")
    yield case("legacy_masked_lm", "--criterion legacy_masked_lm_loss", MASKED)
    yield case("cross_lingual_lm", "--monolingual-langs en,de --criterion legacy_masked_lm_loss", MASKED)
    yield case("language_modeling", family=LANGUAGE)
    yield case(
        "multilingual_language_modeling", "--langs en,de --multilang-sampling-alpha 0.7", LANGUAGE, "languages"
    )
    yield case("dummy_lm", made, LANGUAGE, "none")


def _criterions() -> Iterator[Case]:
    def case(name: str, options: str = "", data: str = "", command: str = "fairseq-train") -> Case:
        criterion = _split(f"--criterion {name.split()[0]} {options}")
        return Case("criterions", name, TRANSLATION, criterion, _SMOOTHING, data, command)

    yield case("cross_entropy", "--sentence-avg")
    yield case("label_smoothed_cross_entropy", "--label-smoothing 0.1 --report-accuracy --ignore-prefix-size 1")
    aligned = "--label-smoothing 0.1 --alignment-lambda 0.1 --load-alignments"
    yield case("label_smoothed_cross_entropy_with_alignment", aligned, "aligned")
    yield case("label_smoothed_cross_entropy_with_rdrop", "--rdrop-alpha 5 --dropout 0.1")
    yield case("label_smoothed_cross_entropy_with_ctc", "--ctc-weight 0.5")
    yield case("latency_augmented_label_smoothed_cross_entropy", "--latency-avg-weight 0.1")
    cutoffs = "--adaptive-softmax-cutoff 20,40"
    yield Case(
        "criterions", f"adaptive_loss {cutoffs}", TRANSLATION,
        _split(f"--criterion adaptive_loss {cutoffs} --ddp-backend legacy_ddp"),
        (*_SMOOTHING, "--share-all-embeddings"),
    )  # fmt: skip
    yield case("composite_loss", "--underlying-criterion cross_entropy")
    yield case("ctc")
    yield case("nat_loss")
    yield case("vocab_parallel_cross_entropy")
    yield Case("criterions", "masked_lm", MASKED)
    yield Case("criterions", "sentence_prediction", LABELLED)
    adapters = "sentence_prediction_adapters"
    yield Case("criterions", adapters, LABELLED, ("--criterion", adapters))
    yield Case("criterions", "sentence_ranking", CHOOSING)
    yield Case("criterions", "legacy_masked_lm_loss", MASKED, ("--criterion", "legacy_masked_lm_loss"))
    r3f = ("--user-dir", f"{_EXAMPLES}/rxf/rxf_src", "--criterion")
    for name, family in (("sentence_prediction_r3f", LABELLED), ("label_smoothed_cross_entropy_r3f", TRANSLATION)):
        yield Case("criterions", name, family, (*r3f, name), command=_WITH_PLUGIN)


_OF_TRANSLATION = """
--activation-dropout 0.1
--activation-fn gelu
--adaptive-input
--adaptive-softmax-cutoff 20,40 --adaptive-softmax-factor 2 --adaptive-softmax-dropout 0.1 ADAPTIVE
--attention-dropout 0.1
--base-layers 1
--char-inputs
--checkpoint-activations
--offload-activations
--cross-self-attention
--decoder-embed-path FILE
--encoder-embed-path FILE
--decoder-layerdrop 0.2 --encoder-layerdrop 0.2
--decoder-layers-to-keep 0 --encoder-layers-to-keep 1
--decoder-learned-pos --encoder-learned-pos
--decoder-normalize-before --encoder-normalize-before
--decoder-normalize-before --no-decoder-final-norm
--decoder-output-dim 24
--decoder-embed-dim 24
--encoder-attention-heads 4 --decoder-attention-heads 1
--decoder-xformers-att-config {}
--encoder-xformers-att-config {}
--dropout 0.1
--relu-dropout 0.1
--export
--layernorm-embedding
--max-source-positions 64 --max-target-positions 64
--merge-src-tgt-embed
--min-params-to-wrap 10
--no-cross-attention
--no-scale-embedding
--no-token-positional-embeddings
--quant-noise-pq 0.1 --quant-noise-pq-block-size 8
--quant-noise-scalar 0.1
--share-all-embeddings
--share-decoder-input-output-embed
--tie-adaptive-proj
--tie-adaptive-weights
--untie-luna-kv
--fix-projection-length
--encoder-projected-attention-heads 4 --decoder-projected-attention-heads 4
--causal-activation elu
--causal-decay 5
--packed-position-bias 1 --packed-position-bias-in cross
--word-dropout 0.1
"""
_OF_THE_MASKED_LM = """
--activation-dropout 0.1
--activation-fn relu
--attention-dropout 0.1
--dropout 0.1
--encoder-layerdrop 0.2
--encoder-layers-to-keep 1
--encoder-normalize-before
--layernorm-embedding
--max-positions 64
--min-params-to-wrap 10
--quant-noise-pq 0.1 --quant-noise-pq-block-size 8
--quant-noise-scalar 0.1
--untie-weights-roberta
--untie-weights-luna
--mha-reg-scale-factor 0.1
--ffn-reg-scale-factor 0.1
--mha-heads-to-keep 1
--ffn-blocks-to-remove 1
--checkpoint-activations
--offload-activations
--fix-projection-length
--packed-position-bias 1
--untie-luna-kv
"""
_OF_CLASSIFICATION = """
--pooler-activation-fn relu --pooler-dropout 0.1
--spectral-norm-classification-head
--load-checkpoint-heads
"""
_OF_THE_LANGUAGE_MODEL = """
--activation-dropout 0.1 --relu-dropout 0.1 --attention-dropout 0.1 --dropout 0.1
--activation-fn gelu
--adaptive-input --adaptive-input-cutoff 10,20 --adaptive-input-factor 2
--adaptive-softmax-cutoff 10,20 --adaptive-softmax-factor 2 --adaptive-softmax-dropout 0.1 ADAPTIVE
--adaptive-input --adaptive-input-cutoff 10,20 --adaptive-softmax-cutoff 10,20 --tie-adaptive-weights ADAPTIVE
--adaptive-input --adaptive-input-cutoff 9,20 --adaptive-softmax-cutoff 9,20 --tie-adaptive-weights --tie-adaptive-proj ADAPTIVE
--base-layers 1
--character-embeddings --character-embedding-dim 4 --character-filters [(1,8),(2,8)] --char-embedder-highway-layers 1
--checkpoint-activations
--offload-activations
--decoder-layerdrop 0.2
--decoder-layers-to-keep 0
--decoder-learned-pos
--decoder-normalize-before
--decoder-normalize-before --no-decoder-final-norm
--decoder-input-dim 24 --decoder-output-dim 24
--decoder-xformers-att-config {}
--layernorm-embedding
--min-params-to-wrap 10
--no-scale-embedding
--no-token-positional-embeddings
--quant-noise-pq 0.1 --quant-noise-pq-block-size 8
--quant-noise-scalar 0.1
--scale-attn
--scale-fc
--scale-heads
--scale-resids
--share-decoder-input-output-embed
--share-packed-embeddings
--causal-activation elu
--causal-decay 5
--untie-luna-kv
--carry-state --carry-positions restart
--carry-state --carry-at-most 8
--sample-break-mode none
--sample-break-mode complete
--sample-break-mode complete_doc
--sample-break-mode eos
--add-bos-token
--max-target-positions 24
--shorten-method truncate
"""  # noqa: E501
_OPTIMIZERS = """
adadelta
adafactor
adagrad
adam --adam-betas (0.9,0.98) --weight-decay 0.1
adam --use-old-adam
adamax
apollo --clip-mode each --clip-norm 0.1
cpu_adam
lamb
nag --momentum 0.9
sgd --momentum 0.9
"""
_SCHEDULES = """
cosine --warmup-updates 1
fixed --warmup-updates 1
inverse_sqrt --warmup-updates 1
manual --update2lr {"1-9":0.1}
milestone --warmup-updates 1 --milestones 2
pass_through
polynomial_decay --total-num-update 4
reduce_lr_on_plateau
step
tri_stage --warmup-steps 1 --hold-steps 1 --decay-steps 1
triangular --max-lr 0.1
"""
_TRAINING = """
--update-freq 2
--clip-norm 0.1
--sentence-avg
--bf16
--amp
--fp16
--memory-efficient-bf16
--memory-efficient-fp16
--store-ema --ema-fp32 --ema-decay 0.9
--use-bmuf
--fp16-adam-stats
--batch-size 4
--required-batch-size-multiple 1
--required-seq-len-multiple 8
--num-batch-buckets 2
--truncate-source --max-source-positions 4
--left-pad-source --left-pad-target
--skip-invalid-size-inputs-valid-test --max-source-positions 6
--curriculum 1
--grouped-shuffling
--update-epoch-batch-itr True
--update-ordered-indices-seed
--num-workers 2
--data-buffer-size 2
--dataset-impl raw
--validate-interval-updates 1
--validate-after-updates 1
--max-valid-steps 1
--disable-validation
--fixed-validation-seed 1
--eval-bleu --eval-bleu-args {"beam":2} --eval-bleu-remove-bpe sentencepiece --eval-tokenized-bleu
--eval-bleu --eval-bleu-args {"beam":2,"print_alignment":"hard"} --eval-bleu-print-samples
--patience 1
--stop-time-hours 1
--lr-scheduler fixed --stop-min-lr 0.0001
--keep-best-checkpoints 1 --best-checkpoint-metric loss
--profile
--tensorboard-logdir FOLDER
--wandb-project x
--log-file NEW
--empty-cache-freq 1
--all-gather-list-size 20000
--fast-stat-sync
--suppress-crashes
--write-checkpoints-asynchronously
--zero-sharding os
--cpu-offload
--ddp-backend legacy_ddp
--ddp-backend fully_sharded
--ddp-backend slowmo
--tpu
--model-parallel-size 2
--pipeline-model-parallel
--use-sharded-state
--load-checkpoint-on-all-dp-ranks
--ignore-unused-valid-subsets
--combine-valid-subsets
--upsample-primary 2
--skip-remainder-batch
--debug-param-names
"""
_DECODING = """
--beam 4 --nbest 2
--sampling
--sampling --sampling-topk 5
--sampling --sampling-topp 0.8
--temperature 2
--lenpen 0.5 --unkpen 1
--unnormalized
--no-early-stop
--match-source-len
--max-len-a 1 --max-len-b 4
--min-len 3
--no-repeat-ngram-size 2
--diverse-beam-groups 2 --diverse-beam-strength 0.5
--diversity-rate 0.5
--prefix-size 2
--constraints ordered
--constraints unordered
--score-reference
--print-alignment hard
--print-alignment soft
--print-step
--replace-unk --dataset-impl raw --print-alignment
--retain-dropout
--retain-dropout --retain-dropout-modules LunaDecoder
--iter-decode-max-iter 2
--retain-iter-history
--lm-path MODEL --lm-weight 0.2
--scoring sacrebleu
--scoring bleu
--scoring wer
--sacrebleu --remove-bpe sentencepiece
--post-process sentencepiece
--results-path FOLDER
--batch-size 1
--fp16
--bf16
--num-shards 2 --shard-id 1
--model-overrides {"dropout":0.1}
--quiet
--decoding-format unigram
--no-beamable-mm
--skip-invalid-size-inputs-valid-test
--truncate-source
--left-pad-source
"""


def _rows(table: str, text: str, family: Family, flag: str = "", command: str = "fairseq-train") -> Iterator[Case]:
    """A case for each line; ``flag`` goes before it."""
    # What shared embeddings cannot be beside.
    alone = ("embed-path", "--adaptive", "--tie-adaptive", "--share", "-embed-dim", "--merge")
    for line in text.strip().splitlines():
        name = line.replace(" ADAPTIVE", "")
        options = _split(f"{flag} {line}".replace("ADAPTIVE", "--criterion adaptive_loss --ddp-backend legacy_ddp"))
        without = ("--share-all-embeddings",) if any(x in line for x in alone) else ()
        without += _SMOOTHING if "ADAPTIVE" in line and family is TRANSLATION else ()
        one = "fairseq-interactive" if "--constraints" in line else command
        data = "several" if "--lm-path" in line else ""  # which has the language model's dictionary
        yield Case(table, name, family, options, without, data, one)


def all_cases() -> List[Case]:
    """Every row, in the page's order."""
    return [
        *_tasks(),
        *_criterions(),
        *_rows("options of the translation model", _OF_TRANSLATION, TRANSLATION),
        *_rows("options of the masked LM", _OF_THE_MASKED_LM, MASKED),
        *_rows("options of the masked LM", _OF_CLASSIFICATION, LABELLED),
        *_rows("options of the language model", _OF_THE_LANGUAGE_MODEL, LANGUAGE),
        *_rows("optimizers", _OPTIMIZERS, TRANSLATION, "--optimizer"),
        *_rows("schedules", _SCHEDULES, TRANSLATION, "--lr-scheduler"),
        *_rows("options of training", _TRAINING, TRANSLATION),
        *_rows("options of decoding", _DECODING, TRANSLATION, command="fairseq-generate"),
    ]
