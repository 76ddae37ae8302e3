#!/usr/bin/env bash
# On which Pythons and with which torch the plugin works: a new environment for each, the wheel in it, and what a user
# would do first. CPU only.
#
#   scripts/matrix.sh run     every Python of PYTHONS with every torch of TORCHES
#   scripts/matrix.sh table   what is finished, as a table; the rest says "not run"
#
# Steps: install, two updates by fairseq-train, two by fairseq-hydra-train, two by each with "luna-fairseq run", an
# average, fairseq-generate, from_pretrained, and a hundred quick tests. From the average on, "luna-fairseq run" is
# taken where fairseq-train does not start. A step that failed does not end the others; its log is in OUT.
#
# Environment: OUT (matrix-out); PYTHONS ("3.10 3.13", or paths; default: one of each minor version that is on the PATH
# or in pyenv); TORCHES ("2.13.0"; "newest" is whatever pip takes); TORCH_OPTIONS (for pip, such as "--index-url ..." of
# CPU builds; torch from PyPI needs 6 GB, one environment at a time); KEEP=1 (environments stay).
# SMOKE=1: the environment at hand, and a few tests, in OUT/smoke.
# It can be interrupted and run again: steps that passed are kept, those that failed are tried again. To repeat a row,
# remove its folder.
set -euo pipefail
CALLER=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

DEFAULT_OUT=matrix-out
OWN_ENVIRONMENTS=1
. scripts/experiment.sh
[ -f pyproject.toml ] && [ -d tests ] || fail "this needs pyproject.toml and the tests: run it in a clone or an unpacked sdist"
unset PYTHONWARNINGS
[ -n "$SMOKE" ] || unset CUDA_HOME PYTHONPATH PYTHONHOME VIRTUAL_ENV
export OMP_NUM_THREADS=${THREADS:-1} PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
TORCHES=${TORCHES:-2.13.0}
STEPS=(install fairseq-train fairseq-hydra-train run average generate hub tests)
TESTS=(tests/ops/test_softmax.py tests/modules/test_layers.py tests/models/test_golden.py tests/compat/test_repairs.py
  tests/optim/test_optim.py tests/data/test_translation_data.py tests/test_imports.py)
[ -z "$SMOKE" ] || TESTS=(tests/modules/test_heads.py)
EXAMPLE="the old cat sleeps"

VERSION='import sys, venv, ensurepip; print("%d.%d.%d" % sys.version_info[:3])'
VERSIONS='import importlib.metadata as m, platform
tag = m.distribution("fairseq-fixed").read_text("WHEEL")
print(platform.python_version(), *map(m.version, ("torch", "numpy", "hydra-core")), sep=" | ", end=" | ")
print("ready-made" if "manylinux" in tag or "-win" in tag else "compiled")'
HUB='import sys
from luna_fairseq.models.luna import LunaModel
run, data, pieces, text = sys.argv[1:]
luna = LunaModel.from_pretrained(run, "average.pt", data, bpe="sentencepiece", sentencepiece_model=pieces)
found = luna.translate(text)
print(repr(found))
assert isinstance(found, str)'

# pythons: "VERSION PATH" of each that is asked for, or that is found, one of each minor version.
pythons() {
  local candidates=() name path version minor seen=' '
  if [ -n "${PYTHONS:-}" ]; then
    read -ra candidates <<< "$PYTHONS"
  else
    candidates=(3.{10..19})
  fi
  for name in "${candidates[@]}"; do
    local paths=("$name")
    if [[ $name =~ ^3\.[0-9.]+$ ]]; then
      mapfile -t paths < <(compgen -G "${PYENV_ROOT:-$HOME/.pyenv}/versions/$name*/bin/python" | sort -rV; type -aP "python$name" || true)
    fi
    version=
    for path in "${paths[@]}"; do
      # A shim of pyenv is there for versions that are not active; Debian's Python may have no ensurepip.
      version=$("$path" -c "$VERSION" 2> /dev/null) || continue
      minor=${version%.*}
      [[ $seen != *" $minor "* ]] || break
      seen+="$minor "
      [ "${minor#3.}" -ge 10 ] || fail "$path is Python $version: name 3.10 or later in PYTHONS"
      echo "$version $path"
      break
    done
    [ -n "$version" ] || [ -z "${PYTHONS:-}" ] || fail "there is no Python $name with venv: correct PYTHONS"
  done
}

# What the steps do. Each ends with the first command that fails.
install() {
  local python=$1 torch=$2 source=$CELL/source wheel
  [ "$torch" = newest ] && torch=torch || torch=torch==$torch
  rm -rf "$source" && mkdir "$source" \
    && cp -R pyproject.toml setup.py MANIFEST.in README.md LICENSE CHANGELOG.md luna_fairseq configs scripts "$source" \
    && "$python" -m venv "$CELL/env" \
    && python -m pip install --progress-bar off "$torch" numpy cython "setuptools>=77" wheel ${TORCH_OPTIONS:-} \
    && python -m pip wheel --no-build-isolation --no-deps --wheel-dir "$CELL" "$source" \
    && wheel=$(compgen -G "$CELL/*.whl") \
    && python -m pip install --progress-bar off --no-build-isolation "$wheel[lra,moses,plots]" "pytest>=8" "hypothesis>=6.100" tensorboardX \
    && rm -rf "$source"
}

data() {
  local text=$CELL/text
  rm -rf "$text" "$CELL/pieces" "$CELL/bin" "$CELL"/spm.*
  luna-fairseq prepare demo "$text" --seed 1 --train 400 --valid 20 --test 20 \
    && luna-fairseq prepare pieces --train "$text/train" --valid "$text/valid" --test "$text/test" --vocab-size 300 \
      --model-prefix "$CELL/spm" --out "$CELL/pieces" \
    && luna-fairseq run fairseq-preprocess --source-lang en --target-lang de --joined-dictionary --trainpref "$CELL/pieces/train" \
      --validpref "$CELL/pieces/valid" --testpref "$CELL/pieces/test" --destdir "$CELL/bin"
}

# train FOLDER COMMAND...: two updates.
train() {
  "${@:2}" "$CELL/bin" --arch luna_base_untied --share-all-embeddings --projection-length 8 \
    --encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 32 --decoder-embed-dim 32 --encoder-ffn-embed-dim 32 \
    --decoder-ffn-embed-dim 32 --encoder-attention-heads 2 --decoder-attention-heads 2 --optimizer adam --lr 1e-3 \
    --criterion label_smoothed_cross_entropy --max-tokens 500 --max-update 2 --cpu --num-workers 0 --data-buffer-size 0 \
    --save-dir "$1" && [ -f "$1/checkpoint_last.pt" ]
}

# train_hydra FOLDER KEY=VALUE COMMAND...: the same, with one more option.
train_hydra() {
  hydra "task.data=$CELL/bin" "checkpoint.save_dir=$1" "hydra.run.dir=$1" ${2:+"$2"}
  "${@:3}" --config-dir "$CONFIGS/translation" --config-name translation "${HYDRA[@]}" "${TINY_ENCODER[@]}" \
    "${TINY_DECODER[@]}" ++optimization.max_update=2 dataset.max_tokens=500 dataset.num_workers=0 \
    dataset.data_buffer_size=0 common.cpu=true && [ -f "$1/checkpoint_last.pt" ]
}

run_both() {
  train "$1" luna-fairseq run fairseq-train && train_hydra "$1/hydra" "" luna-fairseq run fairseq-hydra-train
}

generate() {
  "$@" "$CELL/bin" --path "$TRAINED/average.pt" --cpu --gen-subset test --beam 2 --max-len-b 20 --num-workers 0 \
    --bpe sentencepiece --sentencepiece-model "$CELL/spm.model" > "$CELL/translations" \
    && [ "$(grep -c '^D-' "$CELL/translations")" = 20 ]
}

# The tests import what is installed, and not the package beside them.
run_tests() {
  local root=$PWD tests=("${TESTS[@]}")
  passed fairseq-train || tests=("${TESTS[@]::5}")  # the others start commands of fairseq
  cd "$CELL" && pytest -q -p no:cacheprovider -c "$root/pyproject.toml" -o pythonpath=tests "${tests[@]/#/$root/}"
}

passed() { grep -qs ^pass "$CELL/$1.result"; }

# step NAME COMMAND...: until it has passed.
step() {
  local code=0 result=pass
  ! passed "$1" || return 0
  echo "$(basename "$CELL"): $1"
  logged "$CELL/$1.log" "${@:2}" || code=$?
  [ "$code" = 0 ] || { result=FAIL && echo "$(basename "$CELL"): $1 failed: see $CELL/$1.log"; }
  if [ "$1" = tests ]; then result+=" ($(grep -oE '[0-9]+ (passed|failed|error)' "$CELL/tests.log" | paste -sd , | sed 's/,/, /g' || true))"; fi
  echo "$result" > "$CELL/$1.result"
}

# row VERSION PYTHON TORCH
row() {
  local path=$PATH fairseq=() given=() name left=
  CELL=$OUT/$1-torch-$3
  mkdir -p "$CELL"
  for name in "${STEPS[@]}"; do passed "$name" || left+=$name; done
  if [ -z "$left" ] || [ "$left" = "${SMOKE:+install}" ]; then echo "already finished: $CELL"; return; fi
  if [ -z "$SMOKE" ]; then
    export PATH=$CELL/env/bin:$PATH
    # The steps that are left need an environment that has gone.
    [ -x "$CELL/env/bin/python" ] || rm -f "$CELL/install.result"
    step install install "$2" "$3"
  fi
  if [ -n "$SMOKE" ] || passed install; then
    python -c "$VERSIONS" > "$CELL/versions"
    USER_DIR=$(luna-fairseq user-dir) CONFIGS=$(luna-fairseq configs)
    step data data
    if passed data; then
      step fairseq-train train "$CELL/train" fairseq-train --user-dir "$USER_DIR"
      step fairseq-hydra-train train_hydra "$CELL/hydra" "common.user_dir=$USER_DIR" fairseq-hydra-train
      step run run_both "$CELL/run"
      TRAINED=$CELL/train given=(--user-dir "$USER_DIR")
      passed fairseq-train || { TRAINED=$CELL/run fairseq=(luna-fairseq run) given=(); }
      if [ -f "$TRAINED/checkpoint_last.pt" ]; then
        step average luna-fairseq average --inputs "$TRAINED/checkpoint_last.pt" --output "$TRAINED/average.pt"
        step generate generate "${fairseq[@]}" fairseq-generate "${given[@]}"
        step hub python -c "$HUB" "$TRAINED" "$CELL/bin" "$CELL/spm.model" "$EXAMPLE"
      fi
    fi
    step tests run_tests
  fi
  export PATH=$path
  [ -n "${KEEP:-}" ] || rm -rf "$CELL/env"
}

run() {
  local found version path torch
  own "$OUT"
  hold "$OUT"
  if [ -n "$SMOKE" ]; then
    row "$(python -c "$VERSION")" python installed
  else
    found=$(pythons)
    [ -n "$found" ] || fail "there is no Python from 3.10 on with venv: name one in PYTHONS"
    while read -ru 3 version path; do
      for torch in $TORCHES; do row "$version" "$path" "$torch"; done
    done 3<<< "$found"
  fi
  release
  table
  # Smoke or not, a failed step is a failure.
  ! grep -qs ^FAIL "$OUT"/*/*.result
}

table() {
  local folder name line
  [ -d "$OUT" ] || fail "the folder $OUT does not exist: set OUT, or begin with 'scripts/matrix.sh run'"
  [ -z "$SMOKE" ] || echo "SMOKE: the environment at hand, and few tests"
  echo "| Python | torch | numpy | hydra | fairseq-fixed | $(printf '%s | ' "${STEPS[@]}" | sed 's/ $//')"
  echo "|---|---|---|---|---|$(printf -- '---|%.0s' "${STEPS[@]}")"
  find "$OUT" -mindepth 1 -maxdepth 1 -type d -name '*-torch-*' 2> /dev/null | sort -V | while read -r folder; do
    name=$(basename "$folder")
    line=$(cat "$folder/versions" 2> /dev/null || echo "${name%-torch-*} | ${name##*-torch-} | | |")
    for name in "${STEPS[@]}"; do
      line+=" | $(cat "$folder/$name.result" 2> /dev/null || echo "not run")"
    done
    echo "| $line |"
  done
}

run_command "run table" "$@"
