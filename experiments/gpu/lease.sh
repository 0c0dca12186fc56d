#!/usr/bin/env bash
# A short lease of a GPU machine in few calls, each of which carries what fits. There, in the repository's root:
#   bash experiments/gpu/lease.sh begin TRAIN.tar          wheels, training scans, the penalties' steps alone, then the jobs
#   bash experiments/gpu/lease.sh go SECONDS [TEST.tar]    test scans; waits so long after the jobs' beginning; packs what is trained into $OUT
# Jobs outlive a call. TRAIN.tar and TEST.tar are made by experiments.gpu.parcel, wheels by wheels.sh.
set -uo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 PYTHONPATH=/tmp/site:$PWD
kept=runs/jobs
mkdir -p "$kept"

begin() {
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl || exit 1
  python3 -m experiments.gpu.parcel unpack "$1" > "$kept/unpack.log" 2>&1 &
  timeout 40 python3 -m experiments.speed.penalty --json "$kept/penalty-steps.json" --rounds 1 --models compact@8 compact@64 paper@16 2>&1 |
    tee "$kept/penalty-steps.log" | grep @
  wait
  python3 -m anomaly3d.prepare $(python3 -c "from experiments.comparison.methods import cohort; print(*[w for w in cohort() if w != 'logger=none'])") | tail -n 2
  setsid nohup python3 -m experiments.gpu.jobs --at-once "${AT_ONCE:-14}" > "$kept/jobs.log" 2>&1 &
  setsid nohup nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv,noheader -l 10 > "$kept/smi.log" 2>&1 &
  sleep 4
  tail -n 3 "$kept/jobs.txt"
}

go() {
  local until=$1 test=${2:-} run began
  if [ -n "$test" ]; then
    python3 -m experiments.gpu.parcel unpack "$test" > "$kept/unpack-test.log" 2>&1 && touch "$kept/test.ready"
  fi
  began=$(cut -d. -f1 "$kept/began")
  while [ $(($(date +%s) - began)) -lt "$until" ] && ! grep -q "all done" "$kept/jobs.txt"; do sleep 2; done
  mkdir -p /tmp/small
  for run in $(cd runs && ls -d race-* 2> /dev/null); do  # two f-AnoGANs of 22 MB fit into what a call may bring back
    [ -e "$kept/$run.trained" ] && [ ! -e "$kept/$run.packed" ] || continue
    [[ $run != race-fanogan-* ]] || [ "$(ls "$OUT" | grep -c race-fanogan-)" -lt 4 ] || continue
    python3 -m experiments.gpu.parcel run "runs/$run" "/tmp/small/$run.tar" && touch "$kept/$run.packed"
    [[ $run != race-fanogan-* ]] || { split -b 15M "/tmp/small/$run.tar" "$OUT/$run.tar." && rm "/tmp/small/$run.tar"; }
  done
  tar -cf "$OUT/small.tar" -C /tmp small && rm -r /tmp/small
  tar -czf "$OUT/tables.tar.gz" "$kept" \
    $(ls -d runs/*/*/*/{health.json,lineage.json,config.yaml,training.csv} runs/*/evaluation/{metrics.json,*.csv,*/*.csv} 2> /dev/null)
  cat "$kept/jobs.txt"
  tail -n 2 "$kept/smi.log"
  ls -l "$OUT"
}

"$@"
