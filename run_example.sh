#!/usr/bin/env bash
# Sets the environment up, then train -> test -> semantic search.
#
#   bash run_example.sh                                  our small encoder "mini", fine-tuned on data/sample; no download
#   bash run_example.sh kobert [KORNLU_FOLDER [KOBERT]]  the reference setting: SKT KoBERT on KorNLI and KorSTS
#   bash run_example.sh download                         KorNLI and KorSTS into data/KorNLU
#   bash run_example.sh setup                            the environment alone
#
# KORNLU_FOLDER holds KorNLI/ and KorSTS/ (default data/KorNLU, as `download` makes it); KOBERT is a folder or hub id
# (default skt/kobert-base-v1). PYTHON names the interpreter that .venv is made from (default python3).
set -euo pipefail
for ((i = 2; i <= $#; i++)); do  # folders are meant from where the user stands
  if [ -d "${!i}" ]; then set -- "${@:1:i-1}" "$(realpath "${!i}")" "${@:i+1}"; fi
done
cd "$(dirname "$0")"
unset PYTHONDONTWRITEBYTECODE  # containers often set it: every start would compile PyTorch's modules again

fail() { echo "run_example.sh: $*" >&2; exit 2; }

setup() {
  local python=${PYTHON:-python3} current
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    fail "needs Python 3.11 or newer, and $python is $("$python" --version 2>&1 || true); set PYTHON=/path/to/python3.11"
  current="$("$python" --version) $(cksum <requirements.txt)"
  if [ "$(cat .venv/current 2>/dev/null || true)" != "$current" ]; then
    echo "== installing requirements.txt into .venv (once) =="
    "$python" -m venv .venv || fail "cannot make .venv (on Debian and Ubuntu: apt install python3-venv)"
    # pip would compile every module of every package; Python compiles what is imported, here for the first time
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
    .venv/bin/python -c "import SemanticSearch, train; train.load_encoder('mini')"
    echo "$current" >.venv/current
  fi
}

case "${1:-mini}" in
  setup)
    setup
    ;;
  download)
    setup
    .venv/bin/python -m data.download "${@:2}"
    ;;
  mini)
    setup
    echo "== train: mini (4 layers x 256) goes on with the 400 triplets of data/sample =="
    .venv/bin/python train.py --model mini --train_data data/sample/train_nli.tsv --valid_data data/sample/valid_sts.tsv \
      --negatives 0 --dropout 0.3 --batch_size 64 --eval_steps 7 --select_by avg --output_dir output
    echo "== test: the 200 pairs of data/sample/test_sts.tsv, before (mini) and after (output) =="
    .venv/bin/python evaluate.py --model mini output --test_data data/sample/test_sts.tsv
    echo "== semantic search with output/nli_checkpoint.pt =="
    .venv/bin/python SemanticSearch.py
    ;;
  kobert)
    kornlu=${2:-data/KorNLU}
    for file in KorNLI/snli_1.0_train.ko.tsv KorNLI/multinli.train.ko.tsv KorSTS/sts-dev.tsv KorSTS/sts-test.tsv; do
      [ -f "$kornlu/$file" ] || fail "$kornlu/$file is missing; get it with: bash run_example.sh download" \
        "(or name a folder with KorNLI/ and KorSTS/: bash run_example.sh kobert FOLDER)"
    done
    setup
    echo "== train: ${3:-skt/kobert-base-v1}, reference setting, on KorNLI =="
    .venv/bin/python train.py --model "${3:-skt/kobert-base-v1}" --valid_data "$kornlu/KorSTS/sts-dev.tsv" \
      --train_data "$kornlu/KorNLI/snli_1.0_train.ko.tsv" "$kornlu/KorNLI/multinli.train.ko.tsv" --output_dir output
    echo "== test: KorSTS test =="
    .venv/bin/python evaluate.py --model output --test_data "$kornlu/KorSTS/sts-test.tsv"
    echo "== semantic search with output/nli_checkpoint.pt =="
    .venv/bin/python SemanticSearch.py
    ;;
  *)
    fail "unknown argument '$1'; call it with nothing, kobert, download or setup"
    ;;
esac
