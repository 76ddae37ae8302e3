#!/usr/bin/env bash
# The whole way from text to BLEU on a synthetic English-German corpus, in a few minutes on a CPU.
#
#   scripts/demo.sh [OUT]            OUT (or the variable OUT) is the folder to write to: demo-out
#   SMOKE=1 scripts/demo.sh [OUT]    a tiny corpus and a few updates, in seconds: demo-out/smoke
#
# It can be interrupted and run again: training goes on from its last checkpoint, and is skipped when it is finished. The
# other steps take seconds and are done again.
set -euo pipefail
CALLER=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# fairseq skips a save by updates that falls on the end of an epoch (here 320 updates, in the smoke test 16), so
# none of the last three saves may.
SEED=1
if [[ ${SMOKE:-0} == 1 ]]; then
    DEFAULT_OUT=demo-out/smoke
    TRAIN=500 HELD_OUT=50 PIECES=400 UPDATES=33 SAVE_EVERY=11 LOG_EVERY=11 WANTED_BLEU=0
else
    DEFAULT_OUT=demo-out
    TRAIN=24000 HELD_OUT=500 PIECES=2000 UPDATES=1650 SAVE_EVERY=150 LOG_EVERY=100 WANTED_BLEU=85
fi
MODEL=(
    --arch luna_base_untied --share-all-embeddings --projection-length 16
    --encoder-layers 2 --decoder-layers 2 --encoder-embed-dim 128 --decoder-embed-dim 128
    --encoder-ffn-embed-dim 256 --decoder-ffn-embed-dim 256
    --encoder-attention-heads 4 --decoder-attention-heads 4
    --encoder-normalize-before --decoder-normalize-before
    --packed-position-bias 1
)
TRAINING=(
    --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --dropout 0.0 --max-tokens 1024
    --optimizer adam --adam-betas '(0.9, 0.98)' --lr 4e-3 --lr-scheduler inverse_sqrt --warmup-updates 300
    --seed "$SEED" --max-update "$UPDATES" --save-interval-updates "$SAVE_EVERY" --keep-interval-updates 3
    --no-epoch-checkpoints
)

TRAINED=
OUT=${1:-${OUT:-}} SMOKE=''  # the folder stays as it is named, in a smoke run, too
. scripts/experiment.sh
. scripts/translation.sh
[ "$OUT" != "$CALLER/demo-out/smoke" ] || AROUND=$CALLER/demo-out

step() {
    echo "== $*"
}

# check_step CODE NAME: if a step has failed, the end of what it printed is shown.
check_step() {
    [[ $1 == 0 ]] || tail -n 20 "$OUT/logs/$2.log" >&2
    [[ $1 == 0 ]] || fail_with "$1" "$2 failed; all that it printed is in $OUT/logs/$2.log"
}

# run_step NAME COMMAND...: what it prints goes to a file.
run_step() {
    local code=0
    logged "$OUT/logs/$1.log" "${@:2}" || code=$?
    check_step "$code" "$1"
}

for tool in fairseq-preprocess fairseq-train fairseq-generate sacrebleu; do
    command -v "$tool" >/dev/null || fail "$tool is not on the PATH: activate the environment that has the plugin"
done
if grep -qsxe --arch "$OUT/settings"; then MADE=(settings); else MADE=(); fi
own "$OUT" "${MADE[@]}"
hold "$OUT"
mkdir -p "$OUT/logs"

# Checkpoints fit only the data and the options that they were made with.
SETTINGS=$(
    printf '%s\n' "$TRAIN" "$HELD_OUT" "$PIECES" "${MODEL[@]}" "${TRAINING[@]}"
    cat "$USER_DIR"/data/demo/*.{py,txt} | cksum
)
if [[ -e $OUT/settings && $(<"$OUT/settings") != "$SETTINGS" ]]; then
    fail "$OUT holds a demo with other settings: remove that folder, or name another"
fi
echo "$SETTINGS" >"$OUT/settings.tmp"
mv "$OUT/settings.tmp" "$OUT/settings"

step "1/7 generate the corpus: $OUT/text"
rm -rf "$OUT/text" "$OUT/pieces" "$OUT/bin" "$OUT/spm.model" "$OUT/spm.vocab"
job luna-fairseq prepare demo "$OUT/text" --seed "$SEED" --train "$TRAIN" --valid "$HELD_OUT" --test "$HELD_OUT"

step "2/7 learn and apply a joint SentencePiece model of $PIECES pieces: $OUT/spm.model"
run_step sentencepiece luna-fairseq prepare pieces --train "$OUT/text/train" --valid "$OUT/text/valid" \
    --test "$OUT/text/test" --vocab-size "$PIECES" --model-prefix "$OUT/spm" --out "$OUT/pieces" --verbose

step "3/7 fairseq-preprocess with a joined dictionary: $OUT/bin"
code=0
preprocess 1 pieces bin "$OUT/logs/preprocess.log" || code=$?
check_step "$code" preprocess

step "4/7 fairseq-train, $UPDATES updates: $OUT/checkpoints"
progress() {
    sed -nuE -e 's/.* (loss=[^ ]+), .*num_updates=([^,]+), (lr=[^,]+),.*( wall=.*)/update \2: \1 \3\4 s/p' \
        -e "s/.*valid on 'valid' subset \| loss ([^ ]+) .*\| ppl ([^ ]+) .*\| num_updates ([^ ]+).*/update \3: validation loss=\1 ppl=\2/p"
}
if [[ -n $(find "$OUT/checkpoints" -maxdepth 1 -name "checkpoint_*_$UPDATES.pt" 2>/dev/null) ]]; then
    echo "already done in an earlier run: skipped (the other steps take seconds, and are done again)"
    TRAINED=', without the training, which was done before'
else
    # On a CPU much of the time goes into page faults: glibc should keep what is freed, in large pages.
    code=0
    shown "$OUT/logs/train.log" progress env \
        GLIBC_TUNABLES=glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184:glibc.malloc.hugetlb=1 \
        fairseq-train "$OUT/bin" --user-dir "$USER_DIR" --cpu "${MODEL[@]}" "${TRAINING[@]}" \
        --data-buffer-size 0 --num-workers 0 --log-format simple --log-interval "$LOG_EVERY" \
        --save-dir "$OUT/checkpoints" || code=$?
    check_step "$code" train
fi

step "5/7 average the last three checkpoints: $OUT/averaged.pt"
run_step average luna-fairseq average --inputs "$OUT/checkpoints" --num-update-checkpoints 3 \
    --output "$OUT/averaged.pt"

step "6/7 fairseq-generate on the test set, beam 5: $OUT/logs/generate.log"
run_step generate fairseq-generate "$OUT/bin" --user-dir "$USER_DIR" --cpu --path "$OUT/averaged.pt" \
    --source-lang en --target-lang de --gen-subset test --beam 5 --max-len-a 1.5 --max-len-b 10 --max-tokens 2000 \
    --data-buffer-size 0 --num-workers 0 \
    --bpe sentencepiece --sentencepiece-model "$OUT/spm.model"
take_translations "$OUT/logs/generate.log" "$OUT/text/test.en" "$OUT/translations.de"

step "7/7 score the translations against $OUT/text/test.de"
SCORED=$(sacrebleu "$OUT/text/test.de" -i "$OUT/translations.de" -m bleu -w 2 -f text)
BLEU=$(sed -E 's/^[^=]* = ([0-9.]+) .*/\1/' <<<"$SCORED")
echo "$SCORED"

# head before paste: cut off behind a pipe, paste would end the script.
paste -d '\n' <(head "$OUT/text/test.en") <(head "$OUT/text/test.de") <(head "$OUT/translations.de") |
    sed -e '1~3s/^/\nsource       /' -e '2~3s/^/reference    /' -e '3~3s/^/translation  /'

cat <<END

corpus              $OUT/text/{train,valid,test}.{en,de}
SentencePiece       $OUT/spm.model
data, dictionary    $OUT/bin, $OUT/bin/dict.en.txt (the same for both languages)
checkpoints         $OUT/checkpoints
averaged            $OUT/averaged.pt
logs                $OUT/logs (train.log, generate.log and others)
translations        $OUT/translations.de
time                $SECONDS seconds$TRAINED
BLEU                $BLEU

The corpus is synthetic: this BLEU shows that the tools work together, and says nothing about real translation.
END
if awk -v bleu="$BLEU" -v wanted="$WANTED_BLEU" 'BEGIN { exit !(bleu < wanted) }'; then
    fail "BLEU is $BLEU, below $WANTED_BLEU: the model has not learned the corpus"
fi
