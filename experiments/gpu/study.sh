#!/usr/bin/env bash
# The yardstick and the three phases at paper scale on one GPU, in calls of at most ten minutes: bash experiments/gpu/study.sh
# Called again it goes on where the last call was stopped. Each call leaves what is worth keeping in $OUT/study.tar.gz.
set -uo pipefail
cd "$(dirname "$0")/../.."
kept=runs/gpu                   # tables, logs, and what is done
out=${OUT:-runs}
limit=${LIMIT_S:-560}           # seconds of this call
train=${TRAIN_S:-330}           # seconds for the three phases together, where STEPS does not say how many
cohort=${COHORT:-dataset=phantom dataset.keep_raw=false dataset.counts.train=240 dataset.counts.validation=40 dataset.counts.calibration=40
  dataset.counts.test_normal=50 dataset.counts.test_lesion=50}
model=${MODEL:-paper}
batch=${BATCH:-16}
epoch=${EPOCH:-500}              # steps between two validations
workers=${WORKERS:-$(($(nproc) > 4 ? $(nproc) - 4 : 2))}
grid=${GRID:---limit 150 --cells 1}
mkdir -p "$out" "$kept"
if compgen -G ".whl/*.whl" > /dev/null; then
  [ -d /tmp/site ] || python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target /tmp/site .whl/*.whl || exit 1
  export PYTHONPATH=/tmp/site:$PWD
fi
export PYTHONUNBUFFERED=1

once() {  # NAME COMMAND...: skipped once it has succeeded, stopped where this call's time ends
  local name=$1 left=$((limit - SECONDS)); shift
  [ -e "$kept/$name.done" ] && return 0
  [ "$left" -lt 15 ] && { echo "no time left for $name: call again"; finish; }
  echo "== $name, $left s left"
  timeout --signal=INT --kill-after=20 "$left" "$@" > >(tee -a "$kept/$name.log" | tail -n 25) 2>&1
  local rc=$?
  [ $rc = 0 ] && touch "$kept/$name.done" && return 0
  echo "$name: rc $rc"
  [ "$((limit - SECONDS))" -lt 15 ] && finish
}

finish() {
  local run=runs/gpu-study
  tar -czf "$out/study.tar.gz" --exclude='*.nii.gz' --exclude='*.npy' "$kept" \
    $(ls -d $run/*/*/{health.json,lineage.json,config.yaml,training.csv} $run/evaluation/{metrics.json,figures,fanogan/scores.csv} 2> /dev/null)
  ls -l "$kept" "$out"
  exit 0
}

if [ ! -e "$kept/prepare.done" ]; then  # on processor cores that the GPU's work leaves idle
  (nice -n 19 python3 -m anomaly3d.prepare $cohort workers="$workers" > "$kept/prepare.log" 2>&1 && touch "$kept/prepare.done") &
  preparing=$!
fi
once grid python3 -m experiments.gpu.grid --json "$kept/grid.json" $grid
[ -n "${preparing:-}" ] && wait "$preparing"
[ -e "$kept/prepare.log" ] && tail -n 3 "$kept/prepare.log"
steps=${STEPS:-$(python3 -m experiments.gpu.grid --json "$kept/grid.json" --steps "$train" --epoch "$epoch")}
[ -e "$kept/steps" ] && steps=$(cat "$kept/steps") || echo "$steps" > "$kept/steps"
IFS=, read -r gan encoder finetune <<< "$steps"
echo "steps $steps, $SECONDS s gone"
common="$cohort model=$model run=gpu-study logger=none ++phase.batch=$batch ++phase.steps_per_epoch=$epoch"
once gan python3 -m anomaly3d.train +phase=gan $common "++phase.steps=$gan"
once encoder python3 -m anomaly3d.train +phase=encoder $common "++phase.steps=$encoder"
once finetune python3 -m anomaly3d.train +phase=finetune $common "++phase.steps=$finetune"
once evaluate python3 -m anomaly3d.evaluate run=gpu-study logger=none images=0 "controls=${CONTROLS:-[]}"
once pack python3 -m experiments.gpu.pack runs/gpu-study/evaluation/fanogan "$out"
finish
