#!/usr/bin/env bash
# The yardstick and the three phases at paper scale on one GPU, in calls of at most ten minutes: bash experiments/gpu/study.sh
# Called again it goes on where the last call was stopped. Each call leaves what is worth keeping in $OUT/study.tar.gz.
set -uo pipefail
cd "$(dirname "$0")/../.."
kept=runs/gpu                   # tables, logs, and what is done
out=${OUT:-runs}
limit=${LIMIT_S:-560}           # seconds of this call
steps=${STEPS:-20000,10000,5000}
cohort=${COHORT:-dataset=phantom_paper}
model=${MODEL:-paper}
batch=${BATCH:-16}
epoch=${EPOCH:-500}              # steps between two validations
models=${MODELS:-paper paper@16 compact}
mkdir -p "$out" "$kept"
if compgen -G ".whl/*.whl" > /dev/null; then
  [ -d /tmp/site ] || python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site .whl/*.whl || exit 1
  export PYTHONPATH=/tmp/site:$PWD
fi
export PYTHONUNBUFFERED=1

once() {  # NAME COMMAND...: skipped once it has succeeded, stopped where this call's time ends
  local name=$1 left=$((limit - SECONDS)); shift
  [ -e "$kept/$name.done" ] && return 0
  [ "$left" -lt 20 ] && { echo "no time left for $name: call again"; finish; }
  echo "== $name, $left s left"
  timeout --signal=INT --kill-after=20 "$left" "$@" > >(tee -a "$kept/$name.log" | tail -n 15) 2>&1
  local rc=$?
  [ $rc = 0 ] && touch "$kept/$name.done" && return 0
  echo "$name: rc $rc"
  [ "$((limit - SECONDS))" -lt 20 ] && finish
}

finish() {
  local run=runs/gpu-study
  tar -czf "$out/study.tar.gz" --exclude='*.nii.gz' --exclude='*.npy' "$kept" \
    $(ls -d $run/*/*/{health.json,lineage.json,config.yaml} $run/evaluation/{metrics.json,figures,fanogan/scores.csv} 2> /dev/null)
  ls -l "$kept" "$out"
  exit 0
}

IFS=, read -r gan encoder finetune <<< "$steps"
for m in $models; do
  once "train-$m" python3 -m experiments.speed.train --models "$m" --json "$kept/train-$m.json"
  once "variants-$m" python3 -m experiments.speed.variants --models "$m" --json "$kept/variants-$m.json"
done
once score python3 -m experiments.speed.score --json "$kept/score.json"
once prepare python3 -m anomaly3d.prepare $cohort
common="$cohort model=$model run=gpu-study logger=none ++phase.batch=$batch"
once gan python3 -m anomaly3d.train +phase=gan $common "++phase.steps=$gan" ++phase.steps_per_epoch=$epoch
once encoder python3 -m anomaly3d.train +phase=encoder $common "++phase.steps=$encoder" ++phase.steps_per_epoch=$epoch
once finetune python3 -m anomaly3d.train +phase=finetune $common "++phase.steps=$finetune" ++phase.steps_per_epoch=$epoch
once evaluate python3 -m anomaly3d.evaluate run=gpu-study logger=none
finish
