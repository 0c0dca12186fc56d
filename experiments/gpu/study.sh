#!/usr/bin/env bash
# The yardstick, and detectors of several sizes on one cohort, on one GPU, in calls of at most ten minutes: bash experiments/gpu/study.sh
# Called again it goes on where the last call was stopped. Each call leaves what is worth keeping in $OUT/study.tar.gz.
set -uo pipefail
cd "$(dirname "$0")/../.."
kept=runs/gpu                   # tables, logs, and what is done
out=${OUT:-runs}
limit=${LIMIT_S:-560}           # seconds of this call
seed=${SEED:-22}
cohort=${COHORT:-study=experiments/scores/bench.yaml dataset.seed=$seed dataset.counts.train=160 dataset.counts.validation=30
  dataset.counts.test_normal=40 dataset.counts.test_lesion=40 dataset.counts.b_test_normal=0 dataset.counts.b_test_lesion=0}
workers=${WORKERS:-$(($(nproc) > 4 ? $(nproc) - 4 : 2))}
grid=${GRID:---limit 60 --cells 1 --ideas}
# trained side by side, a line a run: its name | what train is told | what evaluate is told
runs=${RUNS:-gpu-paper | model=paper ++phase.batch=16 ++phase.steps_per_epoch=500 | controls=[]
gpu-compact | model=compact |}
mkdir -p "$out" "$kept"
if compgen -G ".whl/*.whl" > /dev/null; then
  [ -d /tmp/site ] || python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target /tmp/site .whl/*.whl || exit 1
  export PYTHONPATH=/tmp/site:$PWD
fi
export PYTHONUNBUFFERED=1

once() {  # NAME COMMAND...: skipped once it has succeeded, stopped where this call's time ends
  local name=$1 left=$((limit - SECONDS)) rc; shift
  [ -e "$kept/$name.done" ] && return 0
  [ "$left" -lt 15 ] && { echo "no time left for $name: call again"; return 1; }
  echo "== $name, $SECONDS s gone"
  timeout --signal=INT --kill-after=20 "$left" "$@" >> "$kept/$name.log" 2>&1
  rc=$?
  echo "== $name: rc $rc, $SECONDS s gone$([ $rc = 124 ] && echo ": call again")"
  tail -n "${TAIL:-12}" "$kept/$name.log" | cut -c 1-220
  [ $rc = 0 ] && touch "$kept/$name.done"
}

detector() {  # RUN, TRAIN, EVALUATE
  once "train-$1" python3 -m anomaly3d.train $cohort $2 run="$1" &&
    once "evaluate-$1" python3 -m anomaly3d.evaluate run="$1" logger=none images=0 $3
}

once grid python3 -m experiments.gpu.grid --json "$kept/grid.json" $grid &
once prepare nice -n 5 python3 -m anomaly3d.prepare $cohort workers="$workers"
wait
[ -e "$kept/prepare.done" ] && while IFS='|' read -r run train evaluate; do
  detector $run "$train" "$evaluate" &
done <<< "$runs"
wait
tar -czf "$out/study.tar.gz" --exclude='*.nii.gz' --exclude='*.npy' --exclude='*.npz' "$kept" \
  $(ls -d runs/gpu-*/*/*/{health.json,lineage.json,config.yaml,training.csv} runs/gpu-*/evaluation/{metrics.json,figures,*/scores.csv} 2> /dev/null)
ls -l "$kept" "$out"
